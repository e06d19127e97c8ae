// Columns of numbers: {version: [], time: [], value: []}, in the order in which they came.

export const POINTS = 1000;

export const empty = () => ({ version: [], time: [], value: [] });

export function add(columns, version, time, value) {
  columns.version.push(version);
  columns.time.push(time);
  columns.value.push(value);
}

/** Leave `points` values: of each part the smallest and the largest, where they were (min-max). */
export function thinned(columns, points = POINTS) {
  const count = columns.value.length;
  if (count <= points) return columns;
  const kept = empty();
  const parts = Math.floor(points / 2);
  for (let part = 0; part < parts; part += 1) {
    const end = Math.floor(((part + 1) * count) / parts);
    let least = Math.floor((part * count) / parts);
    let most = least;
    for (let place = least; place < end; place += 1) {
      if (columns.value[place] < columns.value[least]) least = place;
      if (columns.value[place] > columns.value[most]) most = place;
    }
    for (const place of least === most ? [least] : [least, most].sort((a, b) => a - b)) {
      add(kept, columns.version[place], columns.time[place], columns.value[place]);
    }
  }
  return kept;
}

/**
 * Return an exponential moving average, without the pull of its start towards zero.
 * weight: of what was before, 0 (none) to 1.
 */
export function smoothed(values, weight) {
  if (weight === 0) return values;
  let sum = 0;
  let all = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    all = weight * all + (1 - weight);
    return sum / all;
  });
}

/**
 * Return pushes a second: versions a second, times how many pushes made one. Of `contributors`,
 * over windows of `seconds` at least; a version that goes back (a restore) begins anew.
 */
export function rates(contributors, seconds = 1) {
  const found = empty();
  let start = 0;
  let pushes = 0;
  for (let place = 1; place < contributors.value.length; place += 1) {
    const versions = contributors.version[place] - contributors.version[place - 1];
    if (versions < 0) {
      start = place;
      pushes = 0;
      continue;
    }
    pushes += versions * contributors.value[place];
    const passed = contributors.time[place] - contributors.time[start];
    if (passed < seconds) continue;
    add(found, contributors.version[place], contributors.time[place], pushes / passed);
    start = place;
    pushes = 0;
  }
  return found;
}

/** Return the value below which the given share lies; NaN of nothing. O(n log n). */
export function quantile(values, share) {
  if (values.length === 0) return NaN;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}

// Columns of numbers, in the order in which they came: version, time and value of each; the mean of
// the part of a longer series that it stands for, and how many values that part had.

export const POINTS = 1000;

export const empty = () => ({ version: [], time: [], value: [], mean: [], weight: [] });

export function add(columns, version, time, value, mean = value, weight = 1) {
  columns.version.push(version);
  columns.time.push(time);
  columns.value.push(value);
  columns.mean.push(mean);
  columns.weight.push(weight);
}

/** Return the columns of a series as the history has it: `count` values, of which some are here. */
export function received({ version, time, value, mean, count }) {
  return {
    version: [...version], time: [...time], value: [...value],
    mean: mean.map((one, place) => one ?? value[place]),
    weight: value.map(() => count / value.length),
  };
}

/**
 * Leave some `points` values: of each part the smallest and the largest, where they were (min-max),
 * and the newest. Parts stand for as many values as each other, whatever was thinned out before, or
 * of a long training there would be little left but its last minute.
 */
export function thinned(columns, points = POINTS) {
  const count = columns.value.length;
  if (count <= points + 1) return columns;
  const kept = empty();
  const share = columns.weight.reduce((sum, weight) => sum + weight, 0) / Math.floor(points / 2);
  let start = 0;
  let passed = 0;
  let end = share;
  for (let place = 0; place < count; place += 1) {
    passed += columns.weight[place];
    if (passed < end && place < count - 1) continue;
    keepExtremes(columns, start, place + 1, kept);
    start = place + 1;
    end = (Math.floor(passed / share) + 1) * share;
  }
  return kept;
}

function keepExtremes(columns, start, end, kept) {
  const { version, time, value, mean, weight } = columns;
  let least = start;
  let most = start;
  let sum = 0;
  let all = 0;
  for (let place = start; place < end; place += 1) {
    if (value[place] < value[least]) least = place;
    if (value[place] > value[most]) most = place;
    sum += mean[place] * weight[place];
    all += weight[place];
  }
  const places = new Set([Math.min(least, most), Math.max(least, most)]);
  if (end === value.length) places.add(end - 1);
  for (const place of places) add(kept, version[place], time[place], value[place], sum / all, all / places.size);
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
 * over windows of `seconds` at least; a version that goes back begins anew.
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
    pushes += versions * contributors.mean[place];
    const passed = contributors.time[place] - contributors.time[start];
    if (passed < seconds) continue;
    add(found, contributors.version[place], contributors.time[place], pushes / passed);
    start = place;
    pushes = 0;
  }
  return found;
}

/** Return the middle one of some values, of two in the middle the larger; NaN of nothing. */
export function middle(values) {
  if (values.length === 0) return NaN;
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

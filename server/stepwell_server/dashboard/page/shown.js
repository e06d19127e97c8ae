// Numbers, bytes and times as people read them; the same as in `stepwell status`.

export function bytes(count) {
  if (count === null || count === undefined || Number.isNaN(count)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (count >= 999.5 && place < units.length - 1) {
    count /= 1000;
    place += 1;
  }
  const decimals = place === 0 || count >= 99.5 ? 0 : count >= 9.95 ? 1 : 2;
  return `${count.toFixed(decimals)} ${units[place]}`;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Number(value.toPrecision(digits)).toString();
}

export function age(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return seconds < 10 ? `${Math.max(0, seconds).toFixed(1)} s` : `${Math.floor(seconds)} s`;
}

export const moment = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleString();

/** Whether a hyperparameter has no value of its own: workers send one with each push. */
export const isPerPush = (some) => some?.class_name === "PerPush";

/** A value of a hyperparameter: a float32, as learning rates are, with as few digits as say which. */
export function value(some) {
  if (typeof some === "string") return some;
  if (isPerPush(some)) return "comes with each push";
  if (typeof some === "number" && Math.fround(some) === some) {
    for (let digits = 1; digits <= 9; digits += 1) {
      const short = Number(some.toPrecision(digits));
      if (Math.fround(short) === some) return String(short);
    }
  }
  return JSON.stringify(some);
}

// Numbers as an instrument shows them: few digits, one unit, and a dash for what is not known.

const DASH = "–";

export function count(n) {
  if (n == null) return DASH;
  if (n >= 1e6) return `${(n / 1e6).toFixed(1)}M`;
  if (n >= 1e4) return `${(n / 1e3).toFixed(0)}k`;
  if (n >= 100 || Number.isInteger(n)) return Math.round(n).toLocaleString("en");
  return n.toFixed(1);
}

export function percent(share) {
  return share == null ? DASH : `${Math.round(100 * share)}%`;
}

export function millis(ms) {
  if (ms == null) return DASH;
  if (ms === 0) return "0";
  if (ms >= 10_000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return ms >= 20 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
}

export function bytes(n) {
  if (!n) return DASH;
  const unit = n >= 1e9 ? [1e9, "GB"] : n >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(n / unit[0]).toFixed(n >= 100 * unit[0] ? 0 : 1)} ${unit[1]}`;
}

export function seconds(s) {
  return s == null ? DASH : s >= 100 ? `${Math.round(s)} s` : `${s.toFixed(1)} s`;
}

export function clock(time_s) {
  return new Date(time_s * 1000).toLocaleTimeString("en-GB");
}

// Ids are random hex, or worker names that differ at their end.
export function brief(id, chars = 8) {
  return id.length <= chars + 2 ? id : id.slice(0, chars);
}

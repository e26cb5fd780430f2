// The spans of one request as a tree on one time line.

import { el } from "./dom.js";
import { millis } from "./format.js";

export function spanTree(spans) {
  const known = new Set(spans.map((span) => span.id));
  const below = (parent) => spans.filter((span) => span.parent === parent);
  const roots = spans.filter((span) => !known.has(span.parent));
  const begin = Math.min(...spans.map((span) => span.start_ns));
  const whole = Math.max(1, ...spans.map((span) => span.end_ns - begin));
  const rows = [];
  const walk = (list, depth) => {
    for (const span of [...list].sort((a, b) => a.start_ns - b.start_ns)) {
      rows.push(row(span, depth, begin, whole));
      walk(below(span.id), depth + 1);
    }
  };
  walk(roots, 0);
  return el("section", { class: "attempt" }, el("p", {}, el("b", {}, "Trace"), el("span", { class: "quiet" }, ` of ${spans.length} spans`)), ...rows);
}

function row(span, depth, begin, whole) {
  const took = (span.end_ns - span.start_ns) / 1e6;
  const facts = Object.entries(span.attributes).map(([name, value]) => `${name} = ${value}`);
  const bar = el("i", { class: span.failed ? "failed" : "" });
  bar.style.marginLeft = `${(100 * (span.start_ns - begin)) / whole}%`;
  bar.style.width = `${Math.max(0.8, (100 * (span.end_ns - span.start_ns)) / whole)}%`;
  return el("div", { class: "row span", title: facts.join("\n") },
    el("span", { class: span.failed ? "failed" : "", style: `padding-left:${12 * depth}px` }, span.name),
    el("span", { class: "time" }, bar),
    el("span", { class: "end" }, millis(took)));
}

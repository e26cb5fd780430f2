// Curves: sparklines without words, and charts with axes, target and a cursor.

import { el, setText, svg } from "./dom.js";

const W = 600;
const H = 150;
const LEFT = 44;
const BOTTOM = 20;
const TOP = 8;

// A path through the points that are known; gaps stay gaps.
function path(points, x, y) {
  let d = "";
  let pen = "M";
  for (const [at, value] of points) {
    if (value == null) {
      pen = "M";
      continue;
    }
    d += `${pen}${x(at).toFixed(1)},${y(value).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

export function sparkline(node, values, { top, target } = {}) {
  const known = values.filter((value) => value != null);
  const max = top ?? Math.max(1e-9, ...known, target ? target * 1.15 : 0);
  const y = (value) => 21 - 20 * Math.min(1, value / max);
  const n = Math.max(values.length - 1, 1);
  let line = node.querySelector(".spark");
  if (!line) {
    node.setAttribute("viewBox", "0 0 100 22");
    node.setAttribute("preserveAspectRatio", "none");
    node.setAttribute("aria-hidden", "true");
    node.append(svg("line", { class: "spark-target", x1: 0, x2: 100, visibility: "hidden" }), (line = svg("path", { class: "spark" })));
  }
  line.setAttribute("d", path(values.map((value, i) => [i, value]), (i) => (100 * i) / n, y));
  const goal = node.querySelector(".spark-target");
  goal.setAttribute("visibility", target && known.length ? "visible" : "hidden");
  if (target) for (const side of ["y1", "y2"]) goal.setAttribute(side, y(target));
}

function niceStep(span) {
  const raw = span / 3;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((step) => step >= raw);
}

export class Chart {
  // `show` formats values; `top` fixes the scale; `names` are the curves, the first is drawn over.
  constructor(box, { show, top = null, describe }) {
    this.show = show;
    this.top = top;
    this.describe = describe;
    this.svg = svg("svg", { role: "img", tabindex: 0 });
    this.grid = svg("g");
    this.breach = svg("path", { class: "breach" });
    this.slo = svg("line", { class: "slo" });
    this.low = svg("path", { class: "p50" });
    this.high = svg("path", { class: "p95" });
    this.cursor = svg("g", { visibility: "hidden" });
    this.svg.append(this.grid, this.breach, this.slo, this.low, this.high, this.cursor);
    this.at = null;
    this.svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
    box.append(this.svg);
  }

  draw(high, low, target) {
    this.w = this.svg.clientWidth || W;
    this.svg.setAttribute("viewBox", `0 0 ${this.w} ${H}`);
    this.data = { high, low };
    const known = [...high, ...low].map(([, value]) => value).filter((value) => value != null);
    const most = Math.max(0, ...known);
    const max = this.top ?? Math.max(most * 1.12, target && most > target / 3 ? target * 1.15 : 0, 1e-6);
    const now = high.length ? high[high.length - 1][0] : 0;
    const first = high.length ? high[0][0] : 0;
    const span = Math.max(60, now - first);
    this.x = (time) => LEFT + (this.w - LEFT - 4) * (1 - (now - time) / span);
    this.y = (value) => H - BOTTOM - (H - BOTTOM - TOP) * Math.min(1, value / max);
    this.#axes(max, span, now, known.length === 0);
    this.high.setAttribute("d", path(high, this.x, this.y));
    this.low.setAttribute("d", path(low, this.x, this.y));
    this.#target(target, max, high);
    this.svg.setAttribute("aria-label", this.describe(high.at(-1)?.[1], low.at(-1)?.[1]));
    this.#mark();
  }

  #axes(max, span, now, empty) {
    const marks = [];
    const step = this.top ? this.top / 4 : niceStep(max);
    for (let value = 0; value <= max * 1.001 && !empty; value += step) {
      const y = this.y(value);
      marks.push(svg("line", { class: "axis", x1: LEFT, x2: this.w - 4, y1: y, y2: y }));
      marks.push(svg("text", { x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, this.show(value)));
    }
    if (empty) marks.push(svg("text", { x: this.w / 2, y: H / 2, "text-anchor": "middle" }, "no requests yet"));
    const minutes = span > 300 ? 120 : span > 120 ? 60 : 30;
    for (let ago = 0; ago <= span && !empty; ago += minutes) {
      const label = ago === 0 ? "now" : ago >= 60 ? `−${ago / 60} min` : `−${ago} s`;
      marks.push(svg("text", { x: this.x(now - ago), y: H - 4, "text-anchor": ago === 0 ? "end" : "middle" }, label));
    }
    this.grid.replaceChildren(...marks);
  }

  #target(target, max, high) {
    const seen = Boolean(target) && target <= max;
    this.slo.setAttribute("visibility", seen ? "visible" : "hidden");
    let shade = "";
    if (seen) {
      const y = this.y(target);
      for (const side of ["y1", "y2"]) this.slo.setAttribute(side, y);
      this.slo.setAttribute("x1", LEFT);
      this.slo.setAttribute("x2", this.w - 4);
      for (let i = 1; i < high.length; i++) {
        const [time, value] = high[i];
        if (value > target) shade += `M${this.x(high[i - 1][0])},${y}V${TOP}H${this.x(time)}V${y}Z`;
      }
    }
    this.breach.setAttribute("d", shade);
  }

  #point(x) {
    this.at = x;
    this.#mark();
  }

  #mark() {
    const points = this.data?.high ?? [];
    if (this.at == null || !points.length) return this.cursor.setAttribute("visibility", "hidden");
    let best = 0;
    points.forEach(([time], i) => {
      if (Math.abs(this.x(time) - this.at) < Math.abs(this.x(points[best][0]) - this.at)) best = i;
    });
    const [time, high] = points[best];
    const low = this.data.low[best]?.[1];
    const x = this.x(time);
    const words = `${new Date(time * 1000).toLocaleTimeString("en-GB")}   ${this.show(high)}  ${this.show(low)}`;
    const end = x > this.w / 2;
    this.cursor.replaceChildren(
      svg("line", { class: "cross", x1: x, x2: x, y1: TOP, y2: H - BOTTOM }),
      svg("text", { class: "tip", x: x + (end ? -6 : 6), y: TOP + 8, "text-anchor": end ? "end" : "start" }, words),
    );
    this.cursor.setAttribute("visibility", "visible");
  }
}

export function smallCurve(label, values, { top, show }) {
  const node = svg("svg", {});
  sparkline(node, values, { top: top ?? Math.max(1, ...values) });
  const caption = el("p");
  setText(caption, `${label}: ${show(values.at(-1) ?? null)}`);
  return el("div", { class: "inspect-chart" }, caption, node);
}

// Eight numbers that say whether all is well, each with the curve that it comes from.

import { byId, el, setText, svg } from "./dom.js";
import { count, millis, percent } from "./format.js";
import { sparkline } from "./curves.js";

const VITALS = [
  { name: "Requests", curve: "requests_per_s", show: count, unit: "/s", note: (p) => (p.failed_per_s ? `${count(p.failed_per_s)}/s failed` : "none failed") },
  { name: "In flight", curve: "in_flight", show: count, note: (p) => `${count(p.waiting)} waiting in engines` },
  { name: "TTFT p95", curve: "ttft_p95_ms", show: millis, target: "ttft_ms" },
  { name: "TPOT p95", curve: "tpot_p95_ms", show: millis, target: "tpot_ms" },
  { name: "Found in cache", curve: "hit_rate", show: percent, top: 1, note: (p) => `${percent(p.predicted_hit_rate)} predicted` },
  { name: "KV in use", curve: "kv_used", show: percent, top: 1, note: (p) => `${percent(p.kv_live)} cached` },
  { name: "Output tokens", curve: "output_tokens_per_s", show: count, unit: "/s", note: (p) => `${count(p.prompt_tokens_per_s)}/s prompt` },
  { name: "Workers ready", curve: "ready", show: count, note: (p, store) => `of ${store.workers.length}` },
];

export class Vitals {
  constructor() {
    this.parts = VITALS.map((vital) => {
      const value = el("span");
      const note = el("p", { class: "note num" });
      const curve = svg("svg", {});
      const box = el("dl", { class: "vital num" }, el("dt", {}, vital.name), el("dd", {}, value, vital.unit ? el("small", {}, vital.unit) : null), note, curve);
      byId("vitals").append(box);
      return { vital, box, value, note, curve };
    });
  }

  draw(store) {
    const point = store.frame?.point;
    if (!point) return;
    for (const { vital, box, value, note, curve } of this.parts) {
      const now = point[vital.curve];
      const target = vital.target && store.targets[vital.target];
      setText(value, vital.show(now));
      setText(note, vital.target ? `target ${millis(target)}` : vital.note(point, store));
      box.classList.toggle("over", Boolean(target && now > target));
      sparkline(curve, (store.curves[vital.curve] ?? []).slice(-300), { top: vital.top, target });
    }
  }
}

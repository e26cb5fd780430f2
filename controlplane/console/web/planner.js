// What the planner wants of each phase against what is there, and its one reason.

import { byId, el, reconcile, setText, svg } from "./dom.js";
import { count, millis, percent } from "./format.js";

export class Planner {
  constructor() {
    this.box = byId("phases");
    this.empty = el("p", { class: "empty" }, "No planner runs: workers are as many as were started.");
  }

  draw(store) {
    const last = store.plans.at(-1);
    if (!last) return void (this.empty.isConnected || this.box.replaceChildren(this.empty));
    this.empty.remove();
    setText(byId("planner-sum"), `${last.advisory ? "advises only" : "decides"}${last.cost_per_hour ? ` · ${last.cost_per_hour.toFixed(2)} an hour` : ""}`);
    reconcile(this.box, last.phases, (p) => `${p.model}/${p.role}`, () =>
      el("div", { class: "phase" }, el("span"), el("span", { class: "want" }), svg("svg", { viewBox: "0 0 100 44", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { class: "there" }), svg("path", { class: "step" })), el("span", { class: "why" })),
    (node, phase) => this.#phase(node, phase, store.plans));
  }

  #phase(node, phase, plans) {
    const [name, want, curve, why] = node.children;
    setText(name, `${phase.model} ${phase.role}`);
    const arrow = phase.wanted > phase.workers ? "↑" : phase.wanted < phase.workers ? "↓" : "=";
    setText(want, `${phase.workers} ${arrow} ${phase.wanted}`);
    want.title = `${phase.workers} ready, ${phase.wanted} wanted`;
    const mine = plans.map((plan) => plan.phases.find((p) => p.model === phase.model && p.role === phase.role)).filter(Boolean);
    const most = Math.max(1, ...mine.flatMap((p) => [p.workers, p.wanted])) * 1.1;
    const [there, step] = curve.children;
    there.setAttribute("d", `${stairs(mine.map((p) => p.workers), most)}V44H0Z`);
    step.setAttribute("d", stairs(mine.map((p) => p.wanted), most));
    setText(why, `${phase.action}: ${phase.reason.replaceAll("_", " ")} · TTFT ${millis(phase.ttft_ms)}, TPOT ${millis(phase.tpot_ms)} · ${percent(phase.attainment)} in target · ${count(phase.rate)}/s, ${count(phase.predicted_rate)}/s forecast`);
  }
}

function stairs(values, most) {
  const n = Math.max(1, values.length);
  const y = (value) => (43 - (42 * value) / most).toFixed(1);
  return values.map((value, i) => `${i ? "V" : `M${(100 * i) / n},`}${y(value)}H${(100 * (i + 1)) / n}`).join("");
}

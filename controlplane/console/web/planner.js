// What the planner wants of each phase against what is there, its one reason, and how what it
// estimates has fared against what was promised: all from its own ticks.

import { byId, el, reconcile, setText, svg } from "./dom.js";
import { sparkline } from "./curves.js";
import { count, millis, percent } from "./format.js";

// A phase answers for what its workers do: one that only decodes has no time to first token.
const PROMISES = [
  { name: "TTFT", of: "ttft_ms", target: "ttft_target_ms", show: millis, roles: ["aggregated", "prefill"], over: (value, target) => value > target },
  { name: "TPOT", of: "tpot_ms", target: "tpot_target_ms", show: millis, roles: ["aggregated", "decode"], over: (value, target) => value > target },
  { name: "in target", of: "attainment", target: "goal", show: percent, top: 1, over: (value, target) => value < target },
];

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
      el("div", { class: "phase" }, el("span"), el("span", { class: "want" }), svg("svg", { viewBox: "0 0 100 44", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { class: "there" }), svg("path", { class: "step" })), this.#promises(), el("span", { class: "why" })),
    (node, phase) => this.#phase(node, phase, store.plans));
  }

  #promises() {
    return el("div", { class: "promises" }, ...PROMISES.map(() => el("div", {}, el("p"), svg("svg", {}))));
  }

  #promise(cell, promise, phase, ticks) {
    cell.hidden = Boolean(promise.roles && !promise.roles.includes(phase.role));
    const [words, curve] = cell.children;
    const target = ticks.at(-1)[0][promise.target];
    const known = phase.rate > 0;
    setText(words, `${promise.name} ${known ? promise.show(phase[promise.of]) : "–"}${target ? ` of ${promise.show(target)}` : ""}`);
    words.classList.toggle("over", Boolean(known && target && promise.over(phase[promise.of], target)));
    sparkline(curve, ticks.map(([, p]) => (p.rate > 0 ? p[promise.of] : null)), { top: promise.top, target });
  }

  #phase(node, phase, plans) {
    const [name, want, curve, promises, why] = node.children;
    setText(name, `${phase.model} ${phase.role}`);
    const arrow = phase.wanted > phase.workers ? "↑" : phase.wanted < phase.workers ? "↓" : "=";
    setText(want, `${phase.workers} ${arrow} ${phase.wanted}`);
    want.title = `${phase.workers} ready, ${phase.wanted} wanted`;
    const ticks = plans.map((plan) => [plan, plan.phases.find((p) => p.model === phase.model && p.role === phase.role)]).filter(([, p]) => p);
    const mine = ticks.map(([, p]) => p);
    const most = Math.max(1, ...mine.flatMap((p) => [p.workers, p.wanted])) * 1.1;
    const [there, step] = curve.children;
    there.setAttribute("d", `${stairs(mine.map((p) => p.workers), most)}V44H0Z`);
    step.setAttribute("d", stairs(mine.map((p) => p.wanted), most));
    PROMISES.forEach((promise, i) => this.#promise(promises.children[i], promise, phase, ticks));
    setText(why, `${phase.action}: ${phase.reason.replaceAll("_", " ")} · ${count(phase.rate)}/s, ${count(phase.predicted_rate)}/s forecast`);
  }
}

function stairs(values, most) {
  const n = Math.max(1, values.length);
  const y = (value) => (43 - (42 * value) / most).toFixed(1);
  return values.map((value, i) => `${i ? "V" : `M${(100 * i) / n},`}${y(value)}H${(100 * (i + 1)) / n}`).join("");
}

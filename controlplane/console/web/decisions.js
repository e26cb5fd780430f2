// Decisions as they are made, and one of them in full: every candidate with its terms.

import { byId, el } from "./dom.js";
import { brief, clock, count } from "./format.js";
import { rows } from "./requests.js";
import { decisionKey } from "./store.js";

const BARS_MAX = 12;

export class Decisions {
  constructor(explain) {
    this.explain = explain;
    this.list = rows(byId("decision-list"), "decision", ["at", "request", "to", "policy", "overlap", "cost of each candidate"], "No decision has been told yet: routers publish a share of theirs (router.decisions_share).");
    this.list.head.children[0].className = "when";
    this.list.head.children[2].className = "";
    this.list.head.children[3].className = "policy";
    this.list.head.children[5].className = "";
    this.seen = null;
  }

  draw(store) {
    if (this.seen === store.decisions) return;
    this.seen = store.decisions;
    this.list.show(store.decisions, decisionKey, (d) => this.#row(d));
  }

  #row(d) {
    const weighed = d.terms.filter((term) => !term.excluded);
    const chosen = weighed.find((term) => term.worker === d.worker);
    const target = d.worker ? el("span", { class: "to" }, d.worker) : el("span", { class: "away" }, d.reason);
    return el("button", { class: "row decision", type: "button", onclick: () => this.explain(d.request, [d]) },
      el("span", { class: "when quiet" }, clock(d.time_s)),
      el("span", { class: "mono" }, brief(d.request)),
      target,
      el("span", { class: "policy quiet" }, d.policy),
      el("span", { class: "end" }, chosen ? count(chosen.overlap_blocks) : "–"),
      costs(weighed, d.worker));
  }
}

function costs(weighed, worker) {
  let shown = weighed.slice(0, BARS_MAX);
  const chosen = weighed.find((term) => term.worker === worker);
  if (chosen && !shown.includes(chosen)) shown = [...shown.slice(0, -1), chosen];
  const least = Math.min(...shown.map((t) => t.cost), 0);
  const most = Math.max(...shown.map((t) => t.cost), least + 1e-9);
  return el("span", { class: "costs", role: "img", "aria-label": `${weighed.length} candidates` },
    ...shown.map((t) => el("i", { class: t.worker === worker ? "won" : "", style: `height:${Math.round(8 + (92 * (t.cost - least)) / (most - least))}%` })));
}

// One decision with all its candidates, as a table.
export function attempt(d) {
  const weighed = d.terms.filter((term) => !term.excluded);
  const out = d.terms.filter((term) => term.excluded);
  const names = Object.keys(weighed[0]?.values ?? {});
  const tiers = ["host_blocks", "disk_blocks"].filter((tier) => weighed.some((term) => term[tier]));
  const heads = ["worker", "cost", "overlap blocks", ...tiers.map((t) => t.replace("_", " ")), "queued tokens", "decode blocks", "requests", ...names.map((n) => n.replaceAll("_", " "))];
  const number = (value) => el("td", { class: "n" }, Number.isInteger(value) ? count(value) : Number(value).toPrecision(4));
  const body = weighed.map((t) =>
    el("tr", { class: t.worker === d.worker ? "won" : "" }, el("td", {}, t.worker), ...[t.cost, t.overlap_blocks, ...tiers.map((tier) => t[tier]), t.queued_prefill_tokens, t.decode_blocks, t.requests, ...names.map((n) => t.values[n])].map(number)));
  const refused = out.map((t) => el("tr", { class: "out" }, el("td", {}, t.worker), el("td", { colspan: heads.length - 1 }, t.excluded)));
  const outcome = d.worker ? `to ${d.worker}` : `turned away: ${d.reason}`;
  return el("section", { class: "attempt" },
    el("p", {}, el("b", {}, `Attempt ${d.attempt} ${outcome}`), el("span", { class: "quiet" }, ` by ${d.router} at ${clock(d.time_s)}, policy ${d.policy || "–"}, ${count(d.prompt_tokens)} prompt tokens`)),
    d.terms.length ? el("div", { class: "wide" }, el("table", { class: "terms" }, el("thead", {}, el("tr", {}, ...heads.map((h, i) => el("th", { class: i ? "n" : "" }, h)))), el("tbody", {}, ...body, ...refused))) : null);
}

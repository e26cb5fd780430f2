// Movements of KV blocks between engines: how far each has come.

import { byId, el, setText } from "./dom.js";
import { bytes, seconds } from "./format.js";
import { rows } from "./requests.js";

const STAGES = ["planned", "reserved", "prefilling", "staged", "transferring", "landed", "released"];
const BAD = ["failed", "expired", "cancelled"];

export class Transfers {
  constructor(explain) {
    this.explain = explain;
    this.list = rows(byId("transfer-list"), "transfer", ["from → to", "state", "size", "took"], "No KV blocks have moved. They do where a model has prefill and decode workers.");
    this.list.head.children[1].className = "";
  }

  draw(store) {
    const all = [...store.transfers.values()].reverse();
    const open = all.filter((t) => !BAD.includes(t.state) && t.state !== "released").length;
    const failed = all.filter((t) => BAD.includes(t.state)).length;
    setText(byId("transfers-sum"), all.length ? `${open} under way${failed ? `, ${failed} of the last ${all.length} failed` : ""}` : "");
    this.list.show(all, (t) => t.ticket, (t) => this.#row(t), (node, t) => this.#update(node, t));
  }

  #row(t) {
    return el("button", { class: "row transfer", type: "button", onclick: () => this.explain(t.request) },
      el("span", {}, `${t.prefill} → ${t.decode}`),
      el("span", { class: "stages" }, ...STAGES.map(() => el("i"))),
      el("span", { class: "end" }), el("span", { class: "end" }));
  }

  #update(node, t) {
    const [, stages, size, took] = node.children;
    const bad = BAD.includes(t.state);
    stages.classList.toggle("bad", bad);
    const reached = STAGES.indexOf(bad ? t.reached : t.state);
    [...stages.children].forEach((stage, i) => stage.classList.toggle("done", i <= reached));
    setText(size, bytes(t.kv_bytes));
    setText(took, bad ? t.state : seconds(t.changed_s - t.began_s));
    const words = `${t.state}${t.cause ? `: ${t.cause}` : ""}${t.link ? `, over ${t.link}` : ""}`;
    if (node.title !== words) node.title = words;
  }
}

// Requests in flight as lives on a common scale, and those that have ended.

import { byId, el, reconcile, setText } from "./dom.js";
import { brief, count, millis, percent, seconds } from "./format.js";

export class Requests {
  constructor(explain) {
    this.explain = explain;
    const tabs = [byId("tab-flight"), byId("tab-ended")];
    for (const tab of tabs) {
      tab.addEventListener("click", () => choose(tabs, tab));
      tab.addEventListener("keydown", (event) => {
        if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
        const other = tabs.find((each) => each !== tab);
        choose(tabs, other);
        other.focus();
      });
    }
    this.flights = rows(byId("flights"), "flight", ["request", "worker", "since dispatch", ""], "Nothing is in flight.");
    this.flights.head.children[2].className = "";
    this.ended = rows(byId("ended"), "endrow", ["request", "worker", "TTFT", "hit", "tokens"], "Nothing has ended yet.");
  }

  draw(store) {
    const frame = store.frame;
    setText(byId("flight-n"), count(frame.point.in_flight));
    const oldest = Math.max(1, ...frame.flights.map((flight) => flight.age_s));
    this.flights.show(frame.flights, (f) => f.request, (f) => this.#flight(f), (node, f) => {
      const [, worker, life, age] = node.children;
      setText(worker, f.worker);
      const first = f.ttft_s ?? f.age_s;
      life.children[0].style.width = `${(100 * first) / oldest}%`;
      life.children[1].style.width = `${(100 * (f.age_s - first)) / oldest}%`;
      setText(age, seconds(f.age_s));
      const words = `${f.request} on ${f.worker}: ${f.phase}, ${seconds(f.age_s)}, attempt ${f.attempt}`;
      if (node.title !== words) node.title = words;
    });
    this.ended.show(store.ended, (e) => e.request, (e) => this.#ended(e));
  }

  #flight(f) {
    return el("button", { class: "row flight", type: "button", onclick: () => this.explain(f.request) },
      el("span", { class: "mono" }, brief(f.request)), el("span"), el("span", { class: "life" }, el("i", { class: "prefill" }), el("i", { class: "decode" })), el("span", { class: "end" }));
  }

  #ended(e) {
    const failed = e.outcome !== "completed";
    return el("button", { class: `row endrow ${failed ? (e.outcome === "cancelled" ? "cancelled" : "failed") : ""}`, type: "button", title: `${e.request}: ${e.outcome}, ${e.prompt_tokens} prompt tokens, policy ${e.policy || "none"}`, onclick: () => this.explain(e.request) },
      el("span", { class: "mono" }, brief(e.request)),
      el("span", {}, failed ? e.outcome : (e.worker ?? "–")),
      el("span", { class: "end" }, millis(e.ttft_ms)),
      el("span", { class: "end" }, e.cached_tokens == null ? "–" : percent(e.cached_tokens / Math.max(1, e.prompt_tokens))),
      el("span", { class: "end" }, count(e.output_tokens)));
  }
}

// A list below a line of heads; says so when it is empty.
export function rows(box, kind, heads, nothing) {
  const head = el("div", { class: `row head ${kind}`, "aria-hidden": "true" }, ...heads.map((text, i) => el("span", { class: i > 1 ? "end" : "" }, text)));
  const list = el("div");
  const empty = el("p", { class: "empty" }, nothing);
  box.append(head, list, empty);
  return {
    show(items, key, make, update) {
      empty.hidden = items.length > 0;
      head.hidden = !items.length;
      reconcile(list, items, key, make, update);
    },
    head,
  };
}

function choose(tabs, chosen) {
  for (const tab of tabs) {
    const mine = tab === chosen;
    tab.setAttribute("aria-selected", String(mine));
    tab.tabIndex = mine ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !mine;
  }
}

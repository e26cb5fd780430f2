// The drawer: one worker, or one request with every decision that was made for it.

import { byId, el } from "./dom.js";
import { brief, count, millis, percent, seconds } from "./format.js";
import { smallCurve } from "./curves.js";
import { attempt } from "./decisions.js";
import { spanTree } from "./traces.js";

export class Inspector {
  constructor(store, onClose) {
    this.store = store;
    this.box = byId("inspector");
    this.onClose = onClose;
    this.worker = null;
    this.asked = 0;
    byId("inspector-close").addEventListener("click", () => this.close());
    document.addEventListener("keydown", (event) => event.key === "Escape" && !this.box.hidden && this.close());
  }

  close() {
    this.worker = null;
    this.asked += 1;
    this.box.hidden = true;
    this.onClose();
    this.from?.focus?.();
  }

  showWorker(name) {
    this.#open(name);
    this.worker = name;
    this.draw();
  }

  // Shows what is known at once, and what routers remember as soon as they say it.
  async showRequest(request, known = []) {
    this.#open(`Request ${request}`);
    this.box.classList.add("wide-body");
    const mine = ++this.asked;
    const ended = this.store.ended.find((e) => e.request === request);
    this.#body(about(ended), ...known.map(attempt), known.length ? null : el("p", { class: "quiet" }, "asking the routers …"));
    try {
      const answer = await fetch(`/api/explain/${encodeURIComponent(request)}`);
      if (!answer.ok) throw new Error(await answer.text());
      const decisions = await answer.json();
      if (mine !== this.asked || this.worker) return;
      const all = decisions.length ? decisions : known;
      this.#body(about(ended), ...all.map(attempt), all.length ? null : el("p", { class: "quiet" }, "No router remembers this request: it may be of long ago, or a gateway that found no router has placed it by itself."));
      await this.#trace(request, mine);
    } catch (error) {
      if (mine === this.asked) this.#body(about(ended), ...known.map(attempt), el("p", { class: "quiet" }, `The routers could not be asked: ${error.message}`));
    }
  }

  // Spans of a request, where the console keeps them.
  async #trace(request, mine) {
    if (!this.store.hello?.traces) return;
    const answer = await fetch(`/api/trace/${encodeURIComponent(request)}`);
    const spans = answer.ok ? await answer.json() : [];
    if (mine !== this.asked || this.worker || !spans.length) return;
    byId("inspector-body").append(spanTree(spans));
  }

  // A worker goes on living while it is looked at.
  draw() {
    const i = this.store.index.get(this.worker);
    if (!this.worker) return;
    if (i == null) return this.#body(el("p", { class: "quiet" }, "This worker has left."));
    const worker = this.store.workers[i];
    const row = this.store.row(i);
    const trace = this.store.traces.get(this.worker) ?? { kv: [], running: [], waiting: [] };
    const mine = (this.store.frame?.flights ?? []).filter((f) => f.worker === this.worker);
    this.#body(
      facts([
        ["state", row && row.silent > 5 ? `${worker.state}, silent for ${seconds(row.silent)}` : worker.state],
        ["model", worker.model],
        ["role", worker.role],
        ["engine", `${worker.engine} ${worker.engine_version}`],
        ["address", worker.url],
        ["hardware", `${worker.accelerators} × ${worker.hardware}`],
        ["place", Object.entries(worker.topology).map(([k, v]) => `${k} ${v}`).join(", ")],
        ["taints", worker.taints.join(", ")],
        ["adapters", worker.adapters.join(", ")],
        ["KV blocks", row && `${count(Math.round(row.kv * worker.total_blocks))} in use and ${count(Math.round(row.live * worker.total_blocks))} cached of ${count(worker.total_blocks)}, ${worker.block_tokens} tokens each`],
        ["queued prefill", row && `${count(row.queued)} tokens`],
        ["cache hits", row && percent(row.hit)],
        ["preemptions", row && count(row.preemptions)],
      ]),
      smallCurve("KV in use", trace.kv, { top: 1, show: percent }),
      smallCurve("running", trace.running, { show: count }),
      smallCurve("waiting", trace.waiting, { show: count }),
    );
    this.#requests(mine);
  }

  // The requests on a worker stay in place while the rest is drawn anew: they are to be clicked.
  #requests(flights) {
    this.flights ??= el("p", {});
    const key = flights.map((f) => f.request).join();
    if (this.flights.dataset.key !== key) {
      this.flights.dataset.key = key;
      this.flights.replaceChildren(...(flights.length ? ["requests here: "] : []), ...flights.flatMap((f) => [el("button", { type: "button", class: "link mono", onclick: () => this.showRequest(f.request) }, brief(f.request)), " "]));
    }
    if (!this.flights.isConnected) byId("inspector-requests").replaceChildren(this.flights);
  }

  #open(title) {
    if (this.box.hidden) this.from = document.activeElement;
    this.worker = null;
    this.box.hidden = false;
    this.box.classList.remove("wide-body");
    byId("inspector-h").textContent = title;
    byId("inspector-close").focus({ preventScroll: true });
  }

  #body(...parts) {
    if (!this.worker) byId("inspector-requests").replaceChildren();
    byId("inspector-body").replaceChildren(...parts.filter(Boolean));
  }
}

function facts(pairs) {
  const list = el("dl", { class: "facts-list" });
  for (const [name, value] of pairs) if (value) list.append(el("dt", {}, name), el("dd", {}, value));
  return list;
}

function about(e) {
  if (!e) return null;
  return facts([
    ["outcome", e.outcome],
    ["worker", e.worker],
    ["prompt", `${count(e.prompt_tokens)} tokens; ${e.cached_tokens == null ? "not told how many" : count(e.cached_tokens)} found in cache, ${count(e.predicted_cached_tokens)} predicted`],
    ["answer", `${count(e.output_tokens)} tokens`],
    ["latency", `TTFT ${millis(e.ttft_ms)}, TPOT ${millis(e.tpot_ms)}, ${millis(e.duration_ms)} in all`],
    ["attempts", e.attempts > 1 ? String(e.attempts) : ""],
    ["trace", e.trace_id],
  ]);
}

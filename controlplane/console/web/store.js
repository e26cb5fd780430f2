// What the page knows: the last words of the feed, and the curves of the last minutes.

const LATEST_MAX = 60;

export const decisionKey = (d) => `${d.request}/${d.attempt}/${d.time_s}`;

// What a page was told when it opened may come again with the first frame.
function newestFirst(news, known, key) {
  const before = new Set(known.map(key));
  const fresh = news.filter((each) => !before.has(key(each))).reverse();
  return fresh.length ? fresh.concat(known).slice(0, LATEST_MAX) : known;
}

export class Store {
  constructor() {
    this.hello = null;
    this.workers = [];
    this.index = new Map();
    this.stale = true;
    this.frame = null;
    this.curves = {};
    this.ended = [];
    this.decisions = [];
    this.transfers = new Map();
    this.plans = [];
    this.traces = new Map(); // of each worker: its last minutes, for the inspector
  }

  takeHello(body) {
    this.hello = body;
    this.pointsMax = Math.max(60, Math.round(600 / body.every_s), (body.curves.time_s ?? []).length);
    this.curves = body.curves;
    this.ended = [...body.ended].reverse();
    this.decisions = [...body.decisions].reverse();
    this.transfers = new Map();
    for (const one of body.transfers ?? []) this.transfers.set(one.ticket, one);
    this.plans = [...(body.plans ?? [])];
  }

  // Those that the console was started with.
  get targets() {
    return { ttft_ms: this.hello.ttft_ms, tpot_ms: this.hello.tpot_ms };
  }

  takeFleet(body) {
    this.workers = body.workers;
    this.stale = body.stale;
    this.index = new Map(body.workers.map((worker, i) => [worker.worker, i]));
    for (const name of this.traces.keys()) if (!this.index.has(name)) this.traces.delete(name);
  }

  takeFrame(body) {
    this.frame = body;
    for (const [name, value] of Object.entries(body.point)) {
      const curve = (this.curves[name] ??= new Array((this.curves.time_s ?? []).length - 1).fill(null));
      curve.push(value);
      if (curve.length > this.pointsMax) curve.shift();
    }
    this.ended = newestFirst(body.ended, this.ended, (e) => e.request);
    this.decisions = newestFirst(body.decisions, this.decisions, decisionKey);
    for (const one of body.transfers ?? []) {
      this.transfers.delete(one.ticket);
      this.transfers.set(one.ticket, one);
    }
    while (this.transfers.size > LATEST_MAX) this.transfers.delete(this.transfers.keys().next().value);
    const last = this.plans.at(-1)?.time_s ?? 0;
    this.plans = this.plans.concat(body.plans.filter((plan) => plan.time_s > last)).slice(-400);
    this.#remember(body.columns);
  }

  // A worker's row of the last frame; null before there is one that fits the fleet.
  row(i) {
    const columns = this.frame?.columns;
    if (!columns || columns.running.length !== this.workers.length) return null;
    return {
      running: columns.running[i],
      waiting: columns.waiting[i],
      queued: columns.queued_tokens[i],
      kv: columns.kv_used[i],
      live: columns.kv_live[i],
      hit: columns.hit_rate[i],
      preemptions: columns.preemptions[i],
      silent: columns.silent_s[i],
    };
  }

  // The curve must have as many points as the time has.
  curve(name) {
    const times = this.curves.time_s ?? [];
    const values = this.curves[name] ?? [];
    return times.map((time, i) => [time, values[values.length - times.length + i] ?? null]);
  }

  #remember(columns) {
    if (columns.running.length !== this.workers.length) return;
    this.workers.forEach((worker, i) => {
      let trace = this.traces.get(worker.worker);
      if (!trace) this.traces.set(worker.worker, (trace = { kv: [], running: [], waiting: [] }));
      trace.kv.push(columns.kv_used[i]);
      trace.running.push(columns.running[i]);
      trace.waiting.push(columns.waiting[i]);
      if (trace.kv.length > 300) for (const curve of Object.values(trace)) curve.shift();
    });
  }
}

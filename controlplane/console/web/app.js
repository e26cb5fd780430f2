// Connects the feed to the instruments. Everything is drawn once a beat, and only while it is seen.

import { byId, setText } from "./dom.js";
import { clock, millis, percent } from "./format.js";
import { Chart } from "./curves.js";
import { Decisions } from "./decisions.js";
import { FleetMap } from "./fleet.js";
import { Inspector } from "./inspector.js";
import { Planner } from "./planner.js";
import { Requests } from "./requests.js";
import { Store } from "./store.js";
import { setUpTheme } from "./theme.js";
import { Transfers } from "./transfers.js";
import { Vitals } from "./vitals.js";

const store = new Store();
const explain = (request, known) => inspector.showRequest(request, known);
const fleet = new FleetMap((worker) => {
  fleet.mark(worker);
  inspector.showWorker(worker);
});
const inspector = new Inspector(store, () => fleet.mark(null));
const vitals = new Vitals();
const requests = new Requests(explain);
const decisions = new Decisions(explain);
const transfers = new Transfers(explain);
const planner = new Planner();
const charts = {
  ttft: new Chart(byId("chart-ttft"), { show: millis, describe: (high, low) => `Time to first token: p95 ${millis(high)}, p50 ${millis(low)}` }),
  tpot: new Chart(byId("chart-tpot"), { show: millis, describe: (high, low) => `Time per output token: p95 ${millis(high)}, p50 ${millis(low)}` }),
  hit: new Chart(byId("chart-hit"), { show: percent, top: 1, describe: (high, low) => `Prompt found in cache: ${percent(high)}, predicted ${percent(low)}` }),
};

function draw() {
  if (document.hidden || !store.frame) return;
  const targets = store.targets;
  vitals.draw(store);
  fleet.draw(store);
  requests.draw(store);
  decisions.draw(store);
  transfers.draw(store);
  planner.draw(store);
  charts.ttft.draw(store.curve("ttft_p95_ms"), store.curve("ttft_p50_ms"), targets.ttft_ms);
  charts.tpot.draw(store.curve("tpot_p95_ms"), store.curve("tpot_p50_ms"), targets.tpot_ms);
  charts.hit.draw(store.curve("hit_rate"), store.curve("predicted_hit_rate"), null);
  inspector.draw();
  setText(byId("clock"), clock(store.frame.time_s));
  link();
}

function link(away = false) {
  const frame = store.frame;
  const [state, words] = away
    ? ["away", "no connection to the console; trying again"]
    : frame && !frame.connected
      ? ["away", "NATS is away: nothing new is heard"]
      : store.stale
        ? ["stale", "etcd is away: the last view of the fleet"]
        : ["live", "live"];
  document.documentElement.dataset.link = state;
  setText(byId("link-text"), words);
}

function connect() {
  const feed = new EventSource("/api/events");
  const on = (kind, take) => feed.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  on("hello", (body) => {
    store.takeHello(body);
    setText(byId("cluster"), body.cluster);
    document.title = `${body.cluster} · tokenplane`;
  });
  on("fleet", (body) => {
    store.takeFleet(body);
    fleet.lay(store);
    draw();
  });
  on("frame", (body) => {
    store.takeFrame(body);
    draw();
  });
  feed.onerror = () => link(true);
}

setUpTheme(byId("theme"));
document.addEventListener("visibilitychange", draw);
window.addEventListener("resize", draw);
connect();

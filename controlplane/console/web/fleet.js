// The fleet map: pools, places within them, and a cell a worker. Arrow keys walk from cell to cell.

import { byId, el, reconcile, setText } from "./dom.js";
import { brief, count, percent } from "./format.js";

const SILENT_S = 5;

export class FleetMap {
  constructor(select) {
    this.select = select;
    this.cells = new Map();
    this.box = byId("pools");
    this.box.addEventListener("keydown", (event) => this.#walk(event));
  }

  // The workers have changed: lay the map out anew.
  lay(store) {
    const workers = store.workers;
    const size = workers.length <= 24 ? "large" : workers.length <= 72 ? "medium" : "small";
    this.box.className = size;
    const pools = grouped(workers, (w) => `${w.model}\u0000${w.role}\u0000${w.hardware}`);
    reconcile(this.box, [...pools], ([key]) => key, () => el("section", { class: "pool" }, el("h3"), el("div", { class: "places" })), (node, [, members]) => {
      node.querySelector("h3").replaceChildren(title(members[0]), el("span", { class: "sum" }));
      this.#places(node.querySelector(".places"), members);
    });
    const names = new Set(workers.map((w) => w.worker));
    for (const name of this.cells.keys()) if (!names.has(name)) this.cells.delete(name);
    if (!workers.length) this.box.replaceChildren(el("p", { class: "empty" }, "No worker has registered yet. An agent beside an engine does that: tokenplane-agent."));
    this.pools = pools;
    this.#rove();
  }

  draw(store) {
    const totals = new Map();
    store.workers.forEach((worker, i) => {
      const row = store.row(i);
      const cell = this.cells.get(worker.worker);
      if (!row || !cell) return;
      this.#cell(cell, worker, row);
      const key = `${worker.model}\u0000${worker.role}\u0000${worker.hardware}`;
      const sum = totals.get(key) ?? { n: 0, ready: 0, running: 0, waiting: 0, used: 0, blocks: 0 };
      sum.n += 1;
      sum.ready += worker.state === "ready";
      sum.running += row.running;
      sum.waiting += row.waiting;
      sum.used += row.kv * worker.total_blocks;
      sum.blocks += worker.total_blocks;
      totals.set(key, sum);
    });
    for (const node of this.box.querySelectorAll(".pool")) {
      const sum = totals.get(node.dataset.key);
      if (sum) setText(node.querySelector(".sum"), `${sum.ready} of ${sum.n} ready · KV ${percent(sum.blocks ? sum.used / sum.blocks : null)} · ${count(sum.running)} running · ${count(sum.waiting)} waiting`);
    }
    const bad = store.workers.filter((w) => w.state === "unhealthy").length;
    setText(byId("fleet-sum"), `${store.workers.length} worker${store.workers.length === 1 ? "" : "s"}${bad ? `, ${bad} unhealthy` : ""}${store.stale ? " · etcd is away: the last view" : ""}`);
  }

  mark(name) {
    for (const [worker, cell] of this.cells) cell.setAttribute("aria-pressed", String(worker === name));
  }

  #places(box, members) {
    const label = dividing(members);
    const places = label ? grouped(members, (w) => w.topology[label] ?? "elsewhere") : new Map([["", members]]);
    reconcile(box, [...places], ([place]) => place, ([place]) => el("div", { class: "place" }, place ? el("h4", {}, `${label} ${place}`) : null, el("div", { class: "cells" })), (node, [, inside]) => {
      reconcile(node.querySelector(".cells"), inside, (w) => w.worker, (w) => this.#make(w), (cell, w) => {
        cell.className = `cell ${w.state}`;
      });
    });
  }

  #make(worker) {
    const cell = el(
      "button",
      { type: "button", "aria-pressed": "false", tabindex: -1, onclick: () => this.select(worker.worker) },
      el("span", { class: "wait t" }),
      el("span", { class: "name t" }, worker.worker),
      el("span", { class: "big t" }, el("span"), el("small", {}, " running")),
      el("span", { class: "facts t" }),
      el("i", { class: "busy" }),
    );
    this.cells.set(worker.worker, cell);
    return cell;
  }

  #cell(cell, worker, row) {
    cell.style.setProperty("--kv-used", row.kv);
    cell.style.setProperty("--kv-live", row.live);
    cell.style.setProperty("--busy", Math.min(1, row.running / worker.max_running));
    cell.classList.toggle("waits", row.waiting > 0);
    cell.classList.toggle("silent", row.silent > SILENT_S);
    const [wait, , big, facts] = cell.children;
    setText(wait, row.waiting ? `${count(row.waiting)} waiting` : "");
    setText(big.firstChild, count(row.running));
    setText(facts, worker.state === "ready" ? `KV ${percent(row.kv)} · cached ${percent(row.live)} · hit ${percent(row.hit)}` : worker.state);
    const words = `${worker.worker}, ${worker.state}: KV ${percent(row.kv)} in use, ${percent(row.live)} cached, ${row.running} running, ${row.waiting} waiting, cache hits ${percent(row.hit)}`;
    if (cell.title !== words) {
      cell.title = words;
      cell.setAttribute("aria-label", words);
    }
  }

  // One cell is in the tab order; arrows move it.
  #rove() {
    const all = [...this.box.querySelectorAll(".cell")];
    if (all.length && !all.some((cell) => cell.tabIndex === 0)) all[0].tabIndex = 0;
  }

  #walk(event) {
    const all = [...this.box.querySelectorAll(".cell")];
    const here = all.indexOf(document.activeElement);
    if (here < 0) return;
    const mid = (cell) => cell.getBoundingClientRect();
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key];
    let next = all[to];
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const from = mid(all[here]);
      const sign = event.key === "ArrowDown" ? 1 : -1;
      const beyond = all.filter((cell) => sign * (mid(cell).top - from.top) > 4);
      const far = (cell) => Math.abs(mid(cell).left - from.left) + 3 * Math.abs(mid(cell).top - from.top);
      next = beyond.sort((a, b) => far(a) - far(b))[0];
    }
    if (!next) return;
    event.preventDefault();
    all[here].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

function grouped(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

// The widest label that parts a pool at all, and not into single workers.
function dividing(members) {
  const labels = [...new Set(members.flatMap((w) => Object.keys(w.topology)))];
  return labels.find((label) => {
    const places = new Set(members.map((w) => w.topology[label])).size;
    return places > 1 && places <= members.length / 2;
  });
}

function title(worker) {
  const hardware = worker.hardware === "unknown" ? "" : ` on ${worker.hardware}`;
  return `${brief(worker.model, 40)} ${worker.role}${hardware}`;
}

"use strict";
(() => {
const every = 3000, patience = 4000;
const titles = {issued: "handed out by the identity provider", delivered: "held by Envoy as SDS secret", loaded: "used by Envoy's TLS contexts", served: "shown to a peer in a handshake"};
const modes = {external_sds: "leave the socket to the identity provider", external_sds_with_files: "refuse to run, unless the mesh gives it client certificates", file_mounted: "refuse to run, unless the mesh gives it client certificates", istiod_ca: "take the socket's place with certificates of istiod's CA"};
const marks = {healthy: "✓", degraded: "!", broken: "✕", unknown: "?"};
const svgTags = new Set(["svg", "rect", "circle", "line", "title"]);
let status = null, received = 0, failure = "";

// el makes an element; text goes in as text, never as markup.
function el(tag, attributes, ...children) {
  const e = svgTags.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) if (v !== null && v !== false) e.setAttribute(k, v);
  e.append(...children.flat().filter(c => c !== null && c !== undefined && c !== false));
  return e;
}

// patch makes old look like fresh and touches only what differs, so that
// nothing flickers and the focus stays where it is.
function patch(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const a of [...old.attributes]) if (!fresh.hasAttribute(a.name)) old.removeAttribute(a.name);
  for (const a of fresh.attributes) if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
  const was = [...old.childNodes], is = [...fresh.childNodes];
  is.forEach((c, i) => was[i] ? patch(was[i], c) : old.append(c));
  was.slice(is.length).forEach(c => c.remove());
}

function fill(id, children, attributes) {
  const old = document.getElementById(id), fresh = old.cloneNode(false);
  for (const [k, v] of Object.entries(attributes || {})) fresh.setAttribute(k, v);
  fresh.append(...children);
  patch(old, fresh);
}

function span(seconds) {
  const s = Math.floor(Math.abs(seconds)), two = n => String(n).padStart(2, "0");
  if (s < 120) return s + " s";
  if (s < 7200) return Math.floor(s / 60) + " min";
  if (s < 172800) return Math.floor(s / 3600) + " h " + two(Math.floor(s % 3600 / 60)) + " min";
  return Math.floor(s / 86400) + " d";
}
const clock = t => new Date(t).toLocaleTimeString([], {hour12: false});
const since = (now, t) => (now - Date.parse(t)) / 1000;

// stoppedAt is the first stage that did not move, going by the problems.
function stoppedAt(v) {
  const late = p => p.name.startsWith("certificate_expir");
  for (const some of [v.problems.filter(p => !late(p)), v.problems.filter(late)])
    for (const s of v.stages) if (some.some(p => p.stage === s.stage)) return s.stage;
  return "";
}

function stage(s, now, stopped) {
  const c = s.certificate, here = s.stage === stopped;
  const head = [el("h3", {}, s.stage), el("p", {class: "soft"}, titles[s.stage])];
  const stop = here ? el("p", {class: "stop"}, "It stopped here.") : null;
  if (!c) return el("li", {class: here ? "stopped" : null}, head, el("p", {class: "big"}, "not seen"), stop);
  const left = -since(now, c.not_after), life = (Date.parse(c.not_after) - Date.parse(c.not_before)) / 1000;
  const share = Math.max(0, Math.min(1, left / life));
  const text = left > 0 ? span(left) + " left" : "expired " + span(left) + " ago";
  const look = share <= 1 / 6 ? "bad" : share <= 1 / 3 ? "warn" : "good";
  return el("li", {class: here ? "stopped" : null}, head,
    el("p", {class: left > 0 ? "big" : "big gone"}, text),
    el("svg", {height: 10, role: "meter", "aria-label": "life left of the certificate " + s.stage, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(share * 100), "aria-valuetext": text},
      el("rect", {class: "track", width: "100%", height: 10, rx: 5}),
      el("rect", {class: look, width: (share * 100).toFixed(1) + "%", height: 10, rx: 5})),
    stop,
    el("p", {}, span(s.age_seconds + (now - Date.parse(status.at)) / 1000) + " old, " + s.rotations + (s.rotations === 1 ? " rotation" : " rotations") + (s.leaves > 1 ? ", " + s.leaves + " leaves" : "")),
    el("p", {class: "mono"}, c.spiffe_id),
    el("p", {class: "soft"}, "good until " + clock(c.not_after) + (c.issuer ? ", issued by " + c.issuer : "")),
    el("p", {class: "mono soft"}, "serial " + c.serial.slice(0, 16)));
}

function problem(p, now) {
  return el("article", {class: p.severity},
    el("h3", {}, el("span", {class: "tag"}, p.severity), " ", p.summary),
    el("p", {class: "mono"}, p.name + (p.reason ? " (" + p.reason + ")" : "") + ", for " + span(since(now, p.since))),
    p.detail ? el("p", {}, el("b", {}, "Seen: "), p.detail) : null,
    el("p", {}, el("b", {}, "Cause: "), p.cause),
    el("p", {}, el("b", {}, "Advice: "), p.advice, " ", el("a", {href: "/problems#" + p.name}, "Runbook of " + p.name)));
}

function facts(v, now) {
  const files = Object.entries(v.credential_files.present).filter(f => f[1]).map(f => f[0]);
  const e = v.envoy, list = [
    ["Verified rotations", v.verified_rotations + (v.interval_seconds ? ", one every " + span(v.interval_seconds) + " (" + v.interval_source + ")" : "")],
    ["Updates", v.hollow_updates + " hollow, " + v.rejected_updates + " rejected"],
    ["Identity mode", v.identity_mode + (modes[v.identity_mode] ? ": at its next start Istio's agent will " + modes[v.identity_mode] : "")],
    ["Credential files", Object.keys(v.credential_files.present).length === 0 ? "not seen" : files.length ? files.join(", ") : v.credential_files.dir_exists ? "none in the directory" : "no directory"]];
  if (e.version) list.push(["Envoy", e.version + (e.started ? ", up for " + span(since(now, e.started)) : "") + (e.sds_streams === undefined ? "" : ", SDS streams open: " + e.sds_streams) + (e.identity_last_updated ? ", identity updated " + span(since(now, e.identity_last_updated)) + " ago, as it says" : "")]);
  for (const s of v.sources) list.push([s.source, s.up ? "answers" : s.detail ? "does not answer: " + s.detail : "has not answered yet"]);
  return list.flatMap(([k, t]) => [el("dt", {}, k), el("dd", {}, t)]);
}

// lanes draws the events: a dot for each rotation, a bar for each problem.
function lanes(v, now) {
  const first = v.events.length ? Date.parse(v.events[0].at) : now;
  const length = Math.min(Math.max(now - first, 60000), 12 * 3600000), begin = now - length;
  const x = t => (100 * Math.max(0, Math.min(1, (t - begin) / length))).toFixed(2) + "%";
  const lane = (name, label, marks) => el("div", {class: "lane"}, el("span", {}, name),
    el("svg", {height: 18, role: "img", "aria-label": label}, el("line", {class: "axis", x1: 0, x2: "100%", y1: 9, y2: 9}), marks));
  const rows = [];
  for (const s of v.stages) {
    const seen = v.events.filter(e => e.type === "rotation" && e.stage === s.stage && Date.parse(e.at) >= begin);
    rows.push(lane(s.stage, s.stage + ": " + seen.length + " new certificates" + (seen.length ? ", the last at " + clock(seen.at(-1).at) : ""),
      seen.map(e => el("circle", {class: "dot", cx: x(Date.parse(e.at)), cy: 9, r: 4}, el("title", {}, clock(e.at) + " " + e.message)))));
  }
  const bars = new Map(), open = new Map();
  const bar = (name, from, to) => { if (!bars.has(name)) bars.set(name, []); bars.get(name).push([from, to]); };
  for (const e of v.events) {
    const t = Date.parse(e.at);
    if (e.type === "problem_raised") open.set(e.problem, t);
    if (e.type === "problem_cleared") { bar(e.problem, open.has(e.problem) ? open.get(e.problem) : begin, t); open.delete(e.problem); }
  }
  for (const p of v.problems) if (!open.has(p.name)) open.set(p.name, Date.parse(p.since));
  for (const [name, from] of open) bar(name, from, now);
  const critical = new Set(v.problems.filter(p => p.severity === "critical").map(p => p.name));
  for (const [name, list] of bars) {
    const inside = list.filter(b => b[1] >= begin);
    if (inside.length) rows.push(lane(name, name + ": " + inside.map(b => clock(b[0]) + " to " + (b[1] === now ? "now" : clock(b[1]))).join(", "),
      inside.map(([a, b]) => el("rect", {class: critical.has(name) ? "bad" : "warn", x: x(a), y: 3, height: 12, rx: 2, width: Math.max(.6, parseFloat(x(b)) - parseFloat(x(a))).toFixed(2) + "%"}))));
  }
  rows.push(el("div", {class: "lane soft"}, el("span", {}), el("span", {class: "ends"}, el("span", {}, span(length / 1000) + " ago"), el("span", {}, "now"))));
  return rows;
}

function draw() {
  const connection = document.getElementById("connection");
  if (connection.textContent !== failure) connection.textContent = failure;
  connection.hidden = !failure;
  if (!status) return;
  const v = status, now = Date.parse(v.at) + performance.now() - received, stopped = stoppedAt(v);
  const title = marks[v.state] + " " + v.state + " – svid-watchdog";
  if (document.title !== title) document.title = title;
  document.getElementById("version").textContent = v.version;
  fill("verdict", [el("p", {class: "word"}, marks[v.state] + " " + v.state), el("p", {}, v.summary)], {class: failure ? "unknown" : v.state});
  fill("stages", v.stages.map(s => stage(s, now, stopped)));
  fill("problems", v.problems.length ? v.problems.map(p => problem(p, now)) : [el("p", {}, v.state === "unknown" ? "None that could be seen; not everything could." : "None holds.")]);
  fill("facts", facts(v, now));
  fill("lanes", lanes(v, now));
  fill("events", !v.events.length ? [el("li", {}, "None yet.")] : v.events.slice(-30).reverse().map(e => el("li", {}, el("span", {class: "soft"}, clock(e.at)), el("span", {}, e.message))));
}

async function ask() {
  try {
    const r = await fetch("/api/v1/status", {cache: "no-store", signal: AbortSignal.timeout(patience)});
    if (!r.ok) throw new Error("it answers " + r.status);
    status = await r.json();
    received = performance.now();
    failure = "";
  } catch (e) {
    failure = "The watchdog does not answer since " + (failure.match(/since (\S+)/)?.[1] || clock(Date.now())) + ": what is shown is old. (" + e.message + ")";
  }
  draw();
}

async function live() {
  if (!document.hidden) await ask();
  setTimeout(live, every);
}
document.addEventListener("visibilitychange", () => document.hidden || ask());
setInterval(() => document.hidden || draw(), 1000);
live();
})();

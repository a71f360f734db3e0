// Live pages: when the stream says that something has changed, the page is read again and the changed parts replaced.
"use strict";
(() => {
  const live = document.getElementById("live");
  if (!live || !window.EventSource) return;
  const root = document.documentElement.dataset.root;
  const MOST_OFTEN = 700, AT_LEAST = 20000, PATIENCE = 4000;
  let readAt = Date.now(), waiting = null, reading = false, again = false, lost = null;

  const clock = (time) => new Date(time).toISOString().slice(11, 19) + " UTC";
  function say(state) {
    const text = state === "live" ? "live" : "stale since " + clock(readAt);
    if (live.dataset.state !== state) live.dataset.state = state;
    if (live.textContent !== text) live.textContent = text;
  }

  // Somebody is about to act, or types: the page under their hands stays as it is.
  const isInUse = () => document.querySelector("details.action[open]") || document.activeElement?.closest("form");

  // Also of what was asked for before they began.
  document.addEventListener("htmx:before:swap", (event) => { if (isInUse()) event.preventDefault(); });

  async function read() {
    if (reading) { again = true; return; }
    if (document.hidden || isInUse()) return;
    reading = true;
    try {
      await htmx.ajax("GET", location.href, { target: "#main", select: "#main", swap: "outerMorph" });
      readAt = Date.now();
    } catch { /* the stream's own state says it */ } finally {
      reading = false;
      if (again) { again = false; soon(); }
    }
  }
  function soon() {
    if (waiting) return;
    waiting = setTimeout(() => { waiting = null; read(); }, Math.max(50, MOST_OFTEN - (Date.now() - readAt)));
  }

  // What is looked up beside the requests is there a moment later.
  setInterval(() => { if (document.querySelector("[data-again]")) read(); }, 1500);

  const stream = new EventSource(root + "/api/v1/events");
  stream.onopen = () => { clearTimeout(lost); lost = null; say("live"); soon(); };
  // The server ends a stream now and then, and the browser opens it again: that is no trouble yet.
  stream.onerror = () => { lost ??= setTimeout(() => say("stale"), stream.readyState === EventSource.CLOSED ? 0 : PATIENCE); };
  for (const kind of ["migration", "attempt", "rollout", "reset"]) stream.addEventListener(kind, soon);
  setInterval(() => { if (stream.readyState === EventSource.OPEN && Date.now() - readAt > AT_LEAST) soon(); }, 5000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
})();

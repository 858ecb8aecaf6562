/* The little that pages do themselves: times in the reader's zone, the live mark, polling when no stream is to be had,
   a log that follows its end, and open sections that stay open when a part of the page is renewed. */
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

  function ago(then, now) {
    const seconds = Math.round((now - then) / 1000);
    const today = then.toDateString() === now.toDateString();
    if (seconds < -1 && (today || seconds > -60)) return seconds > -60 ? `in ${-seconds} s` : `at ${clock.format(then)}`;
    if (then.getFullYear() !== now.getFullYear()) return date.format(then);
    if (seconds < -1) return `${day.format(then)}, ${clock.format(then)}`;
    if (seconds < 5) return "just now";
    if (seconds < 60) return `${seconds} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (today) return clock.format(then);
    return `${day.format(then)}, ${clock.format(then)}`;
  }

  function tellTimes(scope) {
    const now = new Date();
    for (const element of scope.querySelectorAll("time[datetime]")) {
      const then = new Date(element.dateTime);
      if (Number.isNaN(then.getTime())) continue;
      element.title = full.format(then);
      const text = ago(then, now);
      if (element.textContent !== text) element.textContent = text;
    }
  }

  /* The list and the job page listen to a stream. While there is none, they look every few seconds instead. */
  const POLL_MS = 3000;
  let polling = 0;

  function setLive(state) {
    for (const mark of document.querySelectorAll("[data-live]")) {
      if (mark.dataset.live === state) continue;
      mark.dataset.live = state;
      mark.textContent = state === "on" ? "Live" : `Looking every ${POLL_MS / 1000} seconds`;
    }
  }

  function poll() {
    if (!document.hidden) htmx.trigger(document.body, "cloche:poll");
  }

  function startPolling() {
    setLive("polling");
    if (!polling) polling = window.setInterval(poll, POLL_MS);
  }

  function stopPolling() {
    window.clearInterval(polling);
    polling = 0;
    setLive("on");
  }

  function follow() {
    const log = document.getElementById("log");
    const box = document.getElementById("follow");
    if (log && box && box.checked) log.scrollTop = log.scrollHeight;
  }

  /* A part that is renewed comes back with its sections closed: remember which were open. */
  let open = [];
  function remember() {
    open = [...document.querySelectorAll("details[id][open]")].map((element) => element.id);
  }
  function restore() {
    for (const id of open) {
      const element = document.getElementById(id);
      if (element) element.open = true;
    }
  }

  document.addEventListener("htmx:sseOpen", stopPolling);
  document.addEventListener("htmx:sseError", startPolling);
  document.addEventListener("htmx:beforeSwap", (event) => {
    /* The session has ended: the answer is a page to sign in, not a part of this one. */
    if (event.detail.xhr.status === 401) window.location.reload();
    remember();
  });
  for (const name of ["htmx:afterSwap", "htmx:oobAfterSwap"]) {
    document.addEventListener(name, () => {
      restore();
      tellTimes(document); /* before the browser paints, so that no time is seen in UTC first */
    });
  }
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.target.closest("#log")) follow();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && polling) poll();
  });

  /* A choice made with the pointer is taken at once; arrow keys only look through the choices, and the button takes one. */
  let byPointer = false;
  document.addEventListener("pointerdown", () => { byPointer = true; }, true);
  document.addEventListener("keydown", () => { byPointer = false; }, true);
  document.addEventListener("submit", (event) => {
    if (event.target.matches("[data-once]")) event.target.querySelector("#send").disabled = true;
  });
  window.addEventListener("pageshow", () => {
    const send = document.getElementById("send");
    if (send) send.disabled = false;
  });
  document.addEventListener("change", (event) => {
    if (byPointer && event.target.matches("[data-submit-on-change]")) event.target.form.requestSubmit();
    if (event.target.id === "follow") follow();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const confirm = event.target.closest?.("details.confirm[open]");
    if (!confirm) return;
    confirm.open = false;
    confirm.querySelector("summary").focus();
  });

  /* What a link holds behind its # is for this page alone: it goes into its field, and out of the address and the history. */
  const fromHash = document.querySelector("[data-from-hash]");
  if (fromHash && location.hash.length > 1) {
    if (!fromHash.value) fromHash.value = location.hash.slice(1);
    history.replaceState(null, "", location.pathname);
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C"; /* the browser keeps its clipboard to itself; the text is selected */
    }
  });

  document.getElementById("refused")?.focus();
  tellTimes(document);
  follow();
  window.setInterval(() => tellTimes(document), 5000);
})();

// Replaces parts of a page while a run goes on, and zooms where a chart is dragged over. Without it everything else works.

const page = document.querySelector("[data-events]");
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

if (page) follow(page);
zoomByDragging();

function follow(page) {
  const bar = document.querySelector("[data-live]");
  const state = document.querySelector("[data-live-state]");
  const pause = document.querySelector("[data-live-pause]");
  let source = null, paused = false, ended = false, seen = "";

  const say = (text) => { if (state.textContent !== text) state.textContent = text; };

  function open() {
    if (source || paused || ended || document.hidden) return;
    const url = new URL(page.dataset.events, location.href);
    if (seen) url.searchParams.set("at", seen);
    if (calm) url.searchParams.set("every", "2000");
    source = new EventSource(url);
    source.onopen = () => say("Following.");
    source.addEventListener("parts", (event) => {
      seen = event.lastEventId;
      for (const [name, html] of Object.entries(JSON.parse(event.data))) replace(name, html);
    });
    source.addEventListener("end", (event) => {
      ended = true;
      close();
      say("The run has ended: " + JSON.parse(event.data) + ".");
      pause.hidden = true;
    });
    source.onerror = () => {
      if (source && source.readyState === EventSource.CLOSED) {
        source = null;
        say("Not following. Reload the page to see how the run stands.");
      } else say("The connection is lost; trying again.");
    };
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    if (paused) { close(); say("Paused."); } else open();
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  bar.hidden = false;
  open();
}

// replace puts new content into a part of the page, unless someone is in it with the keyboard.
function replace(name, html) {
  const part = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
  if (!part || (part !== document.activeElement && part.contains(document.activeElement)) || part.querySelector(".choice")) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  part.replaceChildren(fresh.content);
}

function zoomByDragging() {
  let drag = null;

  const at = (svg, event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * Number(svg.dataset.wide);
    return Math.max(0, Math.min(1, (x - Number(svg.dataset.left)) / Number(svg.dataset.plot)));
  };
  const step = (svg, share) => {
    const from = BigInt(svg.dataset.from), until = BigInt(svg.dataset.until);
    return from + (until - from) * BigInt(Math.round(share * 1e6)) / 1000000n;
  };

  document.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest && event.target.closest("[data-chart] svg");
    if (!svg || event.button !== 0 || event.pointerType === "touch") return;
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    box.setAttribute("class", "choice");
    box.setAttribute("y", "0");
    box.setAttribute("height", "100%");
    svg.append(box);
    drag = { svg, box, from: at(svg, event), until: at(svg, event) };
    event.preventDefault();
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.until = at(drag.svg, event);
    const left = Number(drag.svg.dataset.left), plot = Number(drag.svg.dataset.plot);
    drag.box.setAttribute("x", String(left + plot * Math.min(drag.from, drag.until)));
    drag.box.setAttribute("width", String(plot * Math.abs(drag.until - drag.from)));
  });
  document.addEventListener("pointerup", () => {
    if (!drag) return;
    const { svg, box, from, until } = drag;
    drag = null;
    box.remove();
    if (Math.abs(until - from) < 0.01) return;
    const url = new URL(location.href);
    url.searchParams.delete("last");
    url.searchParams.set("from", step(svg, Math.min(from, until)));
    url.searchParams.set("until", step(svg, Math.max(from, until)));
    location.assign(url);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && drag) { drag.box.remove(); drag = null; }
  });
}

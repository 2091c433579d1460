// Keeps the page fresh. Without it everything works as well: reload the page.
"use strict";

const EVERY = 5000;
const PATIENCE = 30000;
let wait = EVERY;

async function refresh() {
  const live = document.getElementById("live");
  // Whoever is about to press a button keeps the one under the finger.
  const busy = document.hidden || (document.activeElement && live.contains(document.activeElement));
  if (!busy) {
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE) });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("live");
      if (answer.ok && fresh) {
        if (fresh.innerHTML !== live.innerHTML) live.replaceWith(document.adoptNode(fresh));
        document.title = page.title;
        document.documentElement.classList.remove("stale");
        wait = EVERY;
      } else if (answer.redirected || answer.status === 404) {
        location.reload();
        return;
      } else {
        throw new Error(answer.status);
      }
    } catch {
      // The daemon is being restarted or in trouble, or the network is gone: what is shown may no longer be so.
      document.documentElement.classList.add("stale");
      wait = Math.min(2 * wait, 60000);
    }
  }
  setTimeout(refresh, wait);
}

if (document.getElementById("live")) setTimeout(refresh, wait);

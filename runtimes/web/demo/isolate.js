// The page's service worker, and what registers it.
//
// Threads in wasm need a cross-origin isolated page, that is two response headers. Where the host of the files cannot
// send them, the worker adds them. It also keeps what the page is made of, the model included: the page opens and works
// without its server, and may be installed as a program. What the server has is preferred, so that nothing old is
// shown while it is there. Without service workers the page runs with one thread, and with its server only.
(() => {
  if (!self.window) {
    const FILES = []; // written by the build, as is the name of what is kept
    const KEPT = "clusir";
    const MODEL = ["tile.onnx", "router.onnx", "statistics.onnx", "onnx", "onnx.data"].map((part) => `models/tiny.${part}`);
    /** The answer of the server, which is kept; without the server what was kept. */
    const answer = async (event) => {
      const { method, mode, url } = event.request;
      const own = method === "GET" && url.startsWith(location.origin);
      // A page is the same file whatever is asked of it: ?model=, ?backend=.
      const kept = () => caches.match(url, { ignoreSearch: mode === "navigate" });
      const response = (await fetch(event.request).catch(kept)) || Response.error();
      if (own && response.status === 200) {
        const copy = response.clone();
        event.waitUntil(caches.open(KEPT).then((cache) => cache.put(url, copy)).catch(() => {})); // a full disk
      }
      return isolated(response);
    };
    const isolated = (response) => {
      const { status, body } = response;
      const headers = new Headers(response.headers);
      headers.set("Cross-Origin-Opener-Policy", "same-origin");
      headers.set("Cross-Origin-Embedder-Policy", "require-corp");
      return status ? new Response(body, { status, headers }) : response;
    };
    /** All that is not kept yet and that is there. What cannot be kept is asked of the server as ever. */
    const keep = async () => {
      const cache = await caches.open(KEPT);
      const missing = async (file) => (await cache.match(file)) ?? cache.add(file);
      await Promise.allSettled([...FILES, ...MODEL].map(missing));
    };
    const forget = async () => {
      for (const name of await caches.keys()) if (/^clusir/.test(name) && name !== KEPT) await caches.delete(name);
      await clients.claim();
    };
    oninstall = skipWaiting;
    onactivate = (event) => event.waitUntil(forget());
    onmessage = (event) => event.data === "keep" && event.waitUntil(keep());
    onfetch = (event) => event.respondWith(answer(event));
    return;
  }
  const { serviceWorker } = navigator;
  if (!serviceWorker || location.search.includes("isolate=0")) return;
  const settle = async () => {
    await serviceWorker.register("isolate.js");
    const { active } = await serviceWorker.ready;
    // Once: a page that is still not isolated after its reload stays as it is.
    if (!crossOriginIsolated && !sessionStorage.getItem("isolated")) {
      sessionStorage.setItem("isolated", "1");
      location.reload();
    } else {
      active.postMessage("keep"); // after the page itself, which it would slow down
    }
  };
  addEventListener("load", () => settle().catch(() => {})); // refused by the browser's settings: the page works as it is
})();

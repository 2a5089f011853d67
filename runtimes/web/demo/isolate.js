// Threads in wasm need a cross-origin isolated page, that is two response headers. Where the host of the files cannot
// send them, a service worker of our own adds them. Without service workers the page runs with one thread.
(() => {
  if (typeof window === "undefined") {
    oninstall = () => skipWaiting();
    onactivate = (event) => event.waitUntil(clients.claim());
    onfetch = (event) =>
      event.respondWith(
        fetch(event.request).then((response) => {
          if (response.status === 0) return response;
          const headers = new Headers(response.headers);
          headers.set("Cross-Origin-Opener-Policy", "same-origin");
          headers.set("Cross-Origin-Embedder-Policy", "require-corp");
          return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
        }),
      );
    return;
  }
  if (crossOriginIsolated || !navigator.serviceWorker || location.search.includes("isolate=0")) return;
  navigator.serviceWorker.register("isolate.js").then(async () => {
    await navigator.serviceWorker.ready;
    // Once: a page that is still not isolated after its reload stays as it is.
    if (!sessionStorage.getItem("isolated")) {
      sessionStorage.setItem("isolated", "1");
      location.reload();
    }
  });
})();

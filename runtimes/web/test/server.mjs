// A server of static files for the tests: {prefix: folder}. With isolated: the two headers that wasm threads need.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".png": "image/png",
  ".svg": "image/svg+xml",
  ".webmanifest": "application/manifest+json",
};

/** @returns {Promise<{origin: string, requests: string[], close(): void}>} on a free port of this machine only */
export function serve(folders, { isolated }) {
  const requests = [];
  const server = createServer(async ({ url }, response) => {
    const path = normalize(decodeURIComponent(new URL(url, "http://x").pathname));
    requests.push(path);
    const prefix = Object.keys(folders)
      .sort((a, b) => b.length - a.length)
      .find((key) => path.startsWith(key));
    try {
      const file = join(folders[prefix], path.slice(prefix.length) || "index.html");
      const headers = { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream" };
      if (isolated) {
        headers["Cross-Origin-Opener-Policy"] = "same-origin";
        headers["Cross-Origin-Embedder-Policy"] = "require-corp";
      }
      const body = await readFile(file);
      response.writeHead(200, headers).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      const close = () => {
        server.close();
        server.closeAllConnections();
      };
      resolve({ origin: `http://127.0.0.1:${server.address().port}`, requests, close });
    });
  });
}

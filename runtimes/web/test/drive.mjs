// node drive.mjs CHROMIUM: a page that a test in another language drives. Reads one JSON array a line, [command,
// argument], and answers each with one JSON line: {"value": ...} or {"error": "..."}.
import { createInterface } from "node:readline";
import { launch } from "./chromium.mjs";

const browser = await launch(process.argv[2]);
const page = await (await browser.newContext({ viewport: { width: 1100, height: 900 } })).newPage();
let complaints = [];
page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(error.message));
page.on("requestfailed", (request) => complaints.push(`not loaded: ${request.url()}`));

const commands = {
  open: (url) => ((complaints = []), page.goto(url, { waitUntil: "load" }).then(() => null)),
  run: (body) => page.evaluate(`(() => {${body}})()`),
  press: (key) => page.keyboard.press(key).then(() => null),
  scheme: (colorScheme) => page.emulateMedia({ colorScheme }).then(() => null),
  size: ([width, height]) => page.setViewportSize({ width, height }).then(() => null),
  complaints: () => complaints,
  upload: ([selector, path]) => page.setInputFiles(selector, path).then(() => null),
  wait: ([selector, timeout]) => page.waitForSelector(selector, { timeout }).then(() => null),
  screenshot: async (fullPage) => (await page.screenshot({ fullPage })).toString("base64"),
};
for await (const line of createInterface({ input: process.stdin })) {
  const [command, argument] = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await commands[command](argument)) ?? null };
  } catch (error) {
    answer = { error: String(error.message ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();

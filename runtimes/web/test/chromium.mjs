// Headless Chromium through playwright-core: the one way in which tests of this repository open a browser.
import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** @param {string} executablePath of the installed Chromium */
export const launch = (executablePath) => chromium.launch({ executablePath, args: FLAGS });

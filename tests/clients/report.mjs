// Opens a report in a real browser: a plan on stdin, what was found on stdout. See tests/integration/test_training_report.py.

import { text } from "node:stream/consumers";
import { launch } from "./browser.mjs";

const plan = JSON.parse(await text(process.stdin));

function look() {
  const box = (element) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    return { x, y, width, height };
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    across: document.documentElement.scrollWidth,
    plots: all("figure svg").map((plot) => ({ ...box(plot), label: plot.getAttribute("aria-label") })),
    beyond: all("main *, header *").filter((e) => !e.closest(".table") && box(e).x + box(e).width > innerWidth + 1).map((e) => e.outerHTML.slice(0, 200)),
    texts: all("figure svg text").map((word) => ({ plot: word.closest("svg").getAttribute("aria-label"), text: word.textContent, ...box(word) })),
    headings: all("h1, h2").map((heading) => heading.textContent),
    headlines: all(".headline").map((headline) => headline.innerText),
    background: getComputedStyle(document.body).backgroundColor,
    line: getComputedStyle(document.querySelector("figure svg path[style*='--blue']")).stroke,
  };
}

const browser = await launch(plan.folder);
const page = await browser.newPage();
const found = { console: [], requests: [], looks: {} };
page.on("console", (message) => found.console.push(message.text()));
page.on("pageerror", (error) => found.console.push(String(error)));
page.on("request", (request) => found.requests.push(request.url()));
for (const [name, { width, scheme }] of Object.entries(plan.looks)) {
  await page.setViewport({ width, height: 800, isMobile: width < 500, hasTouch: width < 500 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(plan.url);
  found.looks[name] = await page.evaluate(look);
}
const pdf = Buffer.from(await page.pdf({ format: "A4", printBackground: true })).toString("latin1");
found.pages = pdf.match(/\/Type\s*\/Page\b/g).length;
await browser.close();
process.stdout.write(JSON.stringify(found));

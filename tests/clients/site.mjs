// Opens the documentation in a real browser: a plan on stdin, what was seen on stdout. See tests/integration/test_docs_site.py.

import { join } from "node:path";
import { text } from "node:stream/consumers";
import { launch } from "./browser.mjs";

const plan = JSON.parse(await text(process.stdin));
const browser = await launch(plan.folder);
const page = await browser.newPage();
page.setDefaultTimeout(plan.patience_ms);
const seen = { console: [], requests: [], failed: [], pages: {}, found: {} };
page.on("console", (message) => seen.console.push(message.text()));
page.on("pageerror", (error) => seen.console.push(String(error)));
page.on("request", (request) => seen.requests.push(request.url()));
page.on("requestfailed", (request) => seen.failed.push(request.url()));
for (const [name, width] of Object.entries(plan.widths)) {
  await page.setViewport({ width, height: 800, isMobile: width < 500, hasTouch: width < 500 });
  for (const path of plan.pages) {
    await page.goto(`${plan.site}/${path}`);
    seen.pages[`${name} ${path}`] = await page.evaluate(() => ({
      heading: document.querySelector("h1").innerText,
      across: document.documentElement.scrollWidth,
      text: document.querySelector("article").innerText.length,
    }));
    if (plan.shots) await page.screenshot({ path: join(plan.shots, `${name}-${path.replaceAll("/", "-")}.png`) });
  }
  for (const [word, expected] of Object.entries(plan.searches)) {
    await page.goto(`${plan.site}/index.html`);
    await page.evaluate((query) => {
      const form = document.querySelector("form.sidebar-search-container");
      form.querySelector("input[name=q]").value = query;
      form.submit();
    }, word);
    await page.waitForSelector(`#search-results a[href*="${expected}"]`);
    if (plan.shots) await page.screenshot({ path: join(plan.shots, `${name}-search-${word}.png`) });
    seen.found[`${name} ${word}`] = await page.$$eval("#search-results li a", (links) => links.map((link) => link.href));
  }
}
await browser.close();
process.stdout.write(JSON.stringify(seen));

"""test_pages.py PAGE... — open self-contained pages in headless Chromium: no console error, no network
request, and the page's own controls work (a step advances the player, a click sorts a table). Needs chromium;
exits 77 without it."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
# Runs before the page: remembers errors; after it loaded, works its controls and writes a verdict into the
# title.
PROBE = """<script>
window.problems = [];
window.addEventListener("error", e => problems.push(String(e.message)));
console.error = (...a) => problems.push(a.join(" "));
window.addEventListener("load", () => setTimeout(() => {
  const out = [];
  const step = document.getElementById("step");
  if (step) {
    const before = document.body.innerText;
    step.click();
    if (document.body.innerText === before) problems.push("a step does not advance the player");
    const scrub = document.getElementById("scrub");
    scrub.value = 1000; scrub.dispatchEvent(new Event("input"));
    const end = document.body.innerText;
    if (!/event (\\d+) of \\1\\b/.test(end)) problems.push("the scrubber's end is not the end");
    out.push("player");
  }
  const head = document.querySelector("th[data-sort]");
  if (head) {
    const column = [...head.parentNode.children].indexOf(head);
    const rows = head.closest("table").tBodies[0].rows;
    const read = () => [...rows].map(r => r.cells[column].innerText).join("|");
    const before = read(); head.click(); const one = read(); head.click(); const two = read();
    if (one === before && two === before) problems.push("a click does not sort the table");
    out.push("table");
  }
  const names = performance.getEntriesByType("resource").map(r => r.name);
  const requests = names.filter(n => !n.startsWith("data:"));
  if (requests.length) problems.push("requests " + requests.join(" "));
  document.title = problems.length ? "PROBLEM " + problems.join("; ") : "FINE " + out.join(" ");
}, 200));
</script>"""


def verdict(page):
    html = pathlib.Path(page).read_text()
    with tempfile.TemporaryDirectory() as folder:
        probe = pathlib.Path(folder) / "page.html"
        probe.write_text(html.replace("<head>", "<head>" + PROBE, 1))
        dom = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
                              "--virtual-time-budget=4000", f"--user-data-dir={folder}/profile", "--dump-dom",
                              probe.as_uri()],
                             capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    return title[1] if title else "PROBLEM the browser gave no page"


def main():
    if not BROWSER:
        print("skipped: no chromium")
        sys.exit(77)
    failed = 0
    for page in sys.argv[1:]:
        said = verdict(page)
        ok = said.startswith("FINE ") and len(said) > 5
        failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {pathlib.Path(page).name}: {said}")
    print(f"{len(sys.argv) - 1 - failed} passed, {failed} failed")
    sys.exit(failed != 0)


main()

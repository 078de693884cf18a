"""course_docs.py — excerpts, numbers and outputs in docs/course come from the sources; this puts them there
or checks them.

    python3 scripts/course_docs.py --update      rewrite what the markers name
    python3 scripts/course_docs.py --check       fail if anything is stale, differs between languages or fails

Markers in a chapter (HTML comments, the fenced block after them is generated):
    <!-- excerpt: learn/flash_attention/flash_v2.py softmax_step -->  a function or kernel, by name
    <!-- output: learn run 02 --sim | sectors -->       lines of a command's output that contain a word
    <!-- run: learn quiz 01 -->                         a command the reader types (checked to run)
    <!-- gpu: ncu --set full ./vector_add -->           a command for a GPU machine (listed, not run here)
    <!-- result: bench/results/h100.txt | flash_v2 -->  lines of a result file that contain a word
Commands are `learn ...`, `attn ...` or `python3 FILE`; they run with the programs of the build folder
(--build, default build). Output must be deterministic: counts and errors, never times.
"""
import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ROOT / "docs" / "course", ROOT / "docs" / "course" / "zh"
MARKER = re.compile(r"^<!-- (excerpt|output|run|gpu|result): (.+?) -->$")
FENCES = {".py": "python", ".c": "c", ".cu": "cuda", ".h": "c", ".cpp": "cpp"}


class Stale(Exception):
    pass


def excerpt(argument):
    """The named function, with the comment above it, from a source file."""
    path, name = argument.split()
    lines = (ROOT / path).read_text().splitlines()
    if path.endswith(".py"):
        first = next((i for i, l in enumerate(lines) if re.match(rf"(def|class) {re.escape(name)}\b", l)),
                     None)
        if first is None:
            raise Stale(f"{path} has no {name}")
        last = first + 1
        while last < len(lines) and (not lines[last] or lines[last][0] in " \t)"):
            last += 1
        while first and lines[first - 1].startswith("@"):
            first -= 1
    else:
        first = next((i for i, l in enumerate(lines) if l and l[0] not in " }/*#"
                      and re.search(rf"\b{re.escape(name)}\(", l)), None)
        if first is None:
            raise Stale(f"{path} has no {name}")
        last = first
        while lines[last].rstrip() != "}" and not (last == first and lines[last].rstrip().endswith("}")):
            last += 1
        last += 1
        while first and (lines[first - 1].startswith(("//", "template", " *", "/*"))):
            first -= 1
    body = "\n".join(lines[first:last]).rstrip()
    return f"```{FENCES[pathlib.Path(path).suffix]}\n{body}\n```"


class Runner:
    """Runs documented commands once each, without leaving anything in the reader's home."""

    def __init__(self, build):
        self.build, self.known = pathlib.Path(build).resolve(), {}
        self.folder = tempfile.TemporaryDirectory()
        self.skipped, self.gpu_only = set(), set()

    def __call__(self, command):
        if command in self.known:
            return self.known[command]
        words = shlex.split(command)
        if words[0] in ("learn", "attn"):
            words[0] = str(self.build / words[0])
        elif words[0] == "python3":
            words[0] = os.environ.get("PYTHON", sys.executable)
        else:
            raise Stale(f"not a command that a chapter may show: {command}")
        env = dict(os.environ, LEARN_BUILD=self.folder.name,
                   LEARN_PROGRESS=self.folder.name + "/progress.json", LEARN_FOLDER=str(ROOT / "learn"),
                   TRITON_INTERPRET="1", NO_COLOR="1", PYTHONDONTWRITEBYTECODE="1",
                   ATTN_INCLUDE=str(ROOT / "include"), PYTHON=os.environ.get("PYTHON", sys.executable))
        done = subprocess.run(words, cwd=ROOT, env=env, input="24\n8\n32\n", capture_output=True, text=True,
                              timeout=300)
        missing = "No module named" in done.stderr or done.stdout.startswith("skipped:")
        if done.returncode and not (words[1:2] == ["quiz"] and done.returncode == 1) and not missing:
            raise Stale(f"`{command}` fails ({done.returncode}): {done.stderr.strip()[-300:]}")
        if missing:
            self.skipped.add(command)
        self.known[command] = None if missing else done.stdout
        return self.known[command]


def generated(kind, argument, run, old):
    if kind == "excerpt":
        return excerpt(argument)
    if kind == "gpu":
        run.gpu_only.add(argument)
        return f"```\n{argument}\n```"
    command, _, word = argument.partition(" | ")
    text = (ROOT / command).read_text() if kind == "result" else run(command)
    if kind == "run":
        return f"```\n{command}\n```"
    if text is None:                                  # a Python package is missing here: keep what is there
        return old
    lines = [l.rstrip() for l in text.splitlines() if not word or word in l]
    if not lines:
        raise Stale(f"`{command}` prints no line with \"{word}\"")
    return "```\n" + "\n".join(lines) + "\n```"


def rewrite(path, run):
    """The chapter with every generated block as it should be."""
    lines, out, i = path.read_text().splitlines(), [], 0
    while i < len(lines):
        out.append(lines[i])
        marker = MARKER.match(lines[i])
        i += 1
        if not marker:
            continue
        old = []
        if i < len(lines) and lines[i].startswith("```"):
            end = next((n for n in range(i + 1, len(lines)) if lines[n].startswith("```")), None)
            if end is None:
                raise Stale(f"{path.name}: a fence is not closed")
            old, i = lines[i:end + 1], end + 1
        out.extend(generated(marker[1], marker[2], run, "\n".join(old)).splitlines())
    return "\n".join(out) + "\n"


def structure(path):
    """Heading levels and markers in order: what two languages must share."""
    return [l.split()[0] if l.startswith("#") else l for l in path.read_text().splitlines()
            if re.match(r"#+ ", l) or MARKER.match(l)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--build", default=str(ROOT / "build"))
    arguments = parser.parse_args()
    run, problems = Runner(arguments.build), []
    chapters = sorted(ENGLISH.glob("*.md"))
    for path in chapters + sorted(CHINESE.glob("*.md")):
        try:
            text = rewrite(path, run)
        except Stale as stale:
            problems.append(f"{path.relative_to(ROOT)}: {stale}")
            continue
        if text != path.read_text():
            if arguments.update:
                path.write_text(text)
            else:
                problems.append(f"{path.relative_to(ROOT)}: stale (scripts/course_docs.py --update)")
    if (ROOT / "examples" / "first.c").read_text().rstrip() not in (ROOT / "README.md").read_text():
        problems.append("README.md: its C example is not examples/first.c")
    for path in chapters:
        twin = CHINESE / path.name
        if not twin.exists():
            problems.append(f"{twin.relative_to(ROOT)}: missing")
        elif structure(path) != structure(twin):
            problems.append(f"{path.name}: headings or markers differ between the languages")
    for problem in problems:
        print(problem)
    for command in sorted(run.skipped):
        print(f"skipped: {command} (a package or tool is missing)")
    for command in sorted(run.gpu_only):
        print(f"GPU only, not run: {command}")
    print(f"{len(chapters)} chapters, {len(run.known)} commands run, {len(run.gpu_only)} for a GPU, "
          f"{len(problems)} problems")
    sys.exit(bool(problems))


main()

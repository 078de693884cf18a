#!/usr/bin/env python3
"""test_cli_usage.py ATTN — the command from outside: wrong options, help, colour, suites, the demo's file."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from test_cli import ATTN, Case


class Usage(Case):
    def test_wrong_use_is_2(self):
        cases = [([], "usage"), (["frobnicate"], "frobnicate"), (["run"], "no input"),
                 (["run", "--causul"], "--causal"), (["run", "--in"], "needs a value"),
                 (["explain", "--sq", "x"], "--sq"), (["explain", "--dtype", "f8"], "bf16"),
                 (["explain", "--hq", "3", "--hkv", "2"], "multiple"), (["explain", "--d", "5000"], "qk_dim"),
                 (["explain", "extra"], "extra"), (["inspect"], "FILE"), (["completion", "tcsh"], "tcsh"),
                 (["help", "frobnicate"], "frobnicate"), (["run", "-q"], "-q"),
                 (["run", "--window", "3", "--in", "x"], "128,0"),
                 (["explain", "--sq", str(2 ** 40), "--hq", str(2 ** 40)], "overflow"),
                 (["explain", "--threads", "5000"], "1024")]
        for words, reason in cases:
            result = subprocess.run([ATTN, *words], capture_output=True, text=True)
            self.assertEqual(result.returncode, 2, (words, result.stderr))
            self.assertIn(reason, result.stderr)
            self.assertEqual(result.stdout, "")

    def test_help_for_every_command(self):
        overview = self.attn("help").stdout
        names = [line.split()[0] for line in overview.splitlines() if line.startswith("  ")]
        self.assertIn("run", names)
        for name in names:
            text = self.attn("help", name).stdout
            self.assertIn(f"usage: attn {name}", text)
            self.assertEqual(text, self.attn(name, "--help").stdout)
            self.assertLessEqual(max(len(line) for line in text.splitlines()), 110)

    def test_manual(self):
        page = self.attn("help", "--man").stdout
        self.assertTrue(page.startswith(".Dd"))
        for word in ("attn run", "softcap", "ATTN_NUM_THREADS"):
            self.assertIn(word, page)
        pathlib.Path("attn.1").write_text(page)
        if shutil.which("mandoc"):
            subprocess.run(["mandoc", "-Tlint", "-Werror", "attn.1"], check=True)
        if shutil.which("groff"):
            result = subprocess.run(["groff", "-man", "-mdoc", "-ww", "-Tascii", "attn.1"],
                                    capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_completion(self):
        script = self.attn("completion", "bash").stdout
        pathlib.Path("attn.bash").write_text(script)
        asks = {"'' 1": "convert", "--caus 2": "--causal", "bf 3": "bf16"}
        for ask, expected in asks.items():
            word, at = ask.split()
            words = {"1": f"attn {word}", "2": f"attn run {word}", "3": f"attn explain --dtype {word}"}[at]
            run = f"source attn.bash; COMP_WORDS=({words}); COMP_CWORD={at}; _attn; echo ${{COMPREPLY[@]}}"
            result = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True)
            self.assertIn(expected, result.stdout.split(), result.stderr)
        for shell in ("zsh", "fish"):
            script = self.attn("completion", shell).stdout
            self.assertIn("softcap", script)
            if shutil.which(shell):
                pathlib.Path("script").write_text(script)
                subprocess.run([shell, "-n", "script"], check=True)

    def test_info(self):
        info = json.loads(self.attn("info", "--json").stdout)
        self.assertEqual(info["schema"], 1)
        self.assertIn(info["isa"], info["isa_compiled"])
        self.assertGreaterEqual(info["threads"], 1)
        self.assertTrue(any(kernel["available"] for kernel in info["kernels"]))
        text = self.attn("info").stdout
        for kernel in info["kernels"]:
            self.assertIn(kernel["name"], text)
        scalar = json.loads(self.attn("info", "--json", env={"ATTN_CPU_ISA": "scalar"}).stdout)
        self.assertEqual(scalar["isa"], "scalar")

    def test_explain(self):
        text = self.attn("explain", "--b", "2", "--sq=1,64", "--sk", "128").stdout
        self.assertEqual(text.count("chosen"), 2)
        self.attn("explain", "--kernel", "no_such_kernel", code=2)

    def test_doctor(self):
        result = self.attn("doctor")
        self.assertIn("known answer", result.stdout)
        result = subprocess.run([ATTN, "doctor"], capture_output=True, text=True,
                                env={**os.environ, "ATTN_CPU_ISA": "mmx"})
        self.assertEqual(result.returncode, 1)
        self.assertIn("->", result.stdout)

    def test_colour(self):
        plain = {"NO_COLOR": "", "CLICOLOR_FORCE": ""}
        self.assertNotIn("\033", self.attn("help", env=plain).stdout)
        self.assertIn("\033", self.attn("help", env={**plain, "CLICOLOR_FORCE": "1"}).stdout)
        self.assertNotIn("\033", self.attn("help", env={"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}).stdout)

    def test_suites_in_turn(self):
        """Of a list of suites each is run: the second one is what looks for the file."""
        result = self.attn("bench", "--suite", "overhead,demo", "--in", "missing.safetensors", "--budget", "0.01", code=1)
        self.assertIn("missing.safetensors", result.stderr)

    def test_version(self):
        self.assertRegex(self.attn("--version").stdout, r"^attn \d+\.\d+\.\d+ ")

    def test_demo_file(self):
        """The captured tensors in the repository: there, whole, and computed without a NaN."""
        file = pathlib.Path(__file__).resolve().parent.parent / "demo" / "minilm.safetensors"
        described = json.loads(self.attn("inspect", "--json", file).stdout)["files"][0]
        self.assertEqual(len(described["tensors"]), 11)
        self.assertLess(described["bytes"], 4 * 10 ** 6)
        result = self.attn("run", "--in", file, "--out", "o.safetensors")
        self.assertNotIn("finite", result.stdout)
        shown = json.loads(self.attn("inspect", "--json", "o.safetensors").stdout)
        for tensor in shown["files"][0]["tensors"]:
            self.assertEqual(tensor["nan"], 0)
            if tensor["name"].endswith(".o"):   # LSE is -inf in the padding
                self.assertEqual(tensor["infinite"], 0)


if __name__ == "__main__":
    unittest.main()

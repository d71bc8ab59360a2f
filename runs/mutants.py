"""
Do the tests notice? Puts plausible bugs into a copy of the project, one at a time, and runs the
tests that should fail.

    python runs/mutants.py                         all of them: half an hour
    python runs/mutants.py val-nats pick-hotter    these two
    python runs/mutants.py --unchanged             no bug: the same tests, which should pass

A bug is `caught` if a test fails. A new one is an entry in the list of its kind; its old text must
occur once in its file.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from lib.options import UserError, command_line, did_you_mean, flag

SECONDS = 600  # a bug may run for ever
LEFT_OUT = shutil.ignore_patterns(".git", "cache", "out", "__pycache__", ".pytest_cache")


@dataclass
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str  # parts of the names of those that should fail, with spaces between
    why: str    # what is wrong with `new`


# -----------------------------------------------------------------------------
# the bugs

NUMBERS = [
    Mutant("val-nats", "train.py",
           "bits = processes.sum(nats) / math.log(2)", "bits = processes.sum(nats)",
           "validation_is_bits_per_byte",
           "validation in nats, said to be bits"),
    Mutant("eval-nats", "eval.py",
           "return nats / math.log(2) / text_bytes", "return nats / text_bytes",
           "bits_per_byte_of_a_run as_much_text_as_its_window",
           "eval.py's bits are nats"),
    Mutant("default-stride", "eval.py",
           "options.stride or max(1, context // 2)", "options.stride or context",
           "without_a_stride",
           "windows do not overlap by default, though --help says so"),
    Mutant("cut-in-full", "mix.py",
           "view.text_bytes * length / len(view.symbols)", "view.text_bytes",
           "a_cut_sample_by_hand text_bytes_of_raw text_bytes_are",
           "a sample that is cut counts in full: bits per byte too low"),
    Mutant("cut-in-full-in-a-batch", "mix.py",
           "sum(context.text_bytes for context in contexts)",
           "sum(view.text_bytes for view in contexts[:1]) * len(contexts)",
           "a_batch_is_its_rows",
           "the text of the first row stands for all rows'"),
    Mutant("loss-by-micro-batches", "train.py",
           "loss = losses.sum() / self.symbols_per_step", "loss = losses.mean()",
           "accumulation",
           "loss and gradient grow with the number of micro-batches"),
    Mutant("gradient-by-micro-batches", "train.py",
           "scale = float(self.processes.world_size)",
           "scale = float(self.processes.world_size * len(self.micro_batches))",
           "a_step_follows_the_gradient",
           "the gradient alone grows; clipping and Adam hide it"),
    Mutant("no-clipping", "train.py",
           "self.parameters(byte_heads=False), options.clip)",
           "self.parameters(byte_heads=False), math.inf)",
           "a_step_follows_the_gradient",
           "gradients are not clipped"),
    Mutant("heads-not-clipped", "train.py",
           "self.parameters(byte_heads=True), options.clip)",
           "self.parameters(byte_heads=True), math.inf)",
           "a_step_follows_the_gradient",
           "the byte heads' gradients are not clipped"),
    Mutant("one-group-learns", "train.py",
           "for group in self.optimizer.param_groups:",
           "for group in self.optimizer.param_groups[:1]:",
           "every_group_has_the_rate",
           "the embeddings' learning rate never leaves its peak"),
    Mutant("rate-of-the-next-step", "train.py",
           "lr_at(self.step / self.steps, options)", "lr_at((self.step + 1) / self.steps, options)",
           "every_group_has_the_rate",
           "the learning rate is a step ahead of the log's"),
    Mutant("decayed-embeddings", "train.py",
           '{"params": embeddings, "weight_decay": 0.0}',
           '{"params": embeddings, "weight_decay": options.weight_decay}',
           "weight_decay_is_for_matrices",
           "embeddings decay, rare ones to nothing"),
    Mutant("flops-of-all-columns", "train.py",
           "flops_per_symbol(self.model, PROXY0, self.raw_share)",
           "flops_per_symbol(self.model, PROXY0)",
           "flops_of_a_training",
           "--flops and the log ignore the raw share"),
    Mutant("heads-on-symbols", "lib/plan.py",
           "(1 - raw_share) * model.byte_heads.n_params()",
           "raw_share * model.byte_heads.n_params()",
           "flops_of_byte_heads",
           "FLOPs of byte heads are taken for the wrong share"),
    Mutant("ngrams-multiply", "model.py",
           "                n -= self.ngram.table.weight.numel()\n",
           "                n -= 0\n",
           "flops_are_those_that_torch_counts sizes_are_printed",
           "the n-gram table counts as multiplying"),
    Mutant("logits-once", "lib/plan.py",
           "loss + 3 * 4 * loss_rows * config.vocab_size",
           "loss + 4 * loss_rows * config.vocab_size",
           "a_plan_by_hand the_plan_is_what",
           "the plan counts a chunk's logits once and not three times"),
    Mutant("gathered-once", "lib/plan.py",
           "in_use = 2 * bytes_in_use * gathered", "in_use = bytes_in_use * gathered",
           "a_plan_by_hand",
           "under FSDP gathered gradients are forgotten"),
    Mutant("all-gathered", "lib/plan.py",
           "n - (model.config.n_layer - 2) * n_block", "n",
           "a_plan_by_hand",
           "under FSDP all blocks are gathered at once"),
    Mutant("gib-for-gb", "lib/plan.py",
           "available = 1e9 * options.gpu_memory", "available = 2 ** 30 * options.gpu_memory",
           "a_plan_by_hand fits_to_the_last",
           "the limit is in GiB, and 7 % too high"),
    Mutant("pick-hotter", "sample.py",
           "logits.float() / temperature", "logits.float() * temperature",
           "draws_by_hand",
           "the temperature is upside down"),
    Mutant("one-seed", "sample.py",
           "torch.Generator(model.embed.weight.device).manual_seed(seed)",
           "torch.Generator(model.embed.weight.device).manual_seed(0)",
           "two_seeds_differ",
           "--seed does nothing"),
    Mutant("one-seed-in-symbols", "sample.py",
           "torch.Generator(device).manual_seed(seed)", "torch.Generator(device).manual_seed(0)",
           "two_seeds_differ_in_symbols",
           "--seed does nothing with --view=comp"),
    Mutant("interval-of-90", "eval.py",
           "(2.5, 97.5)", "(5, 95)",
           "an_interval",
           "a 95 % interval of 90 %"),
    Mutant("raw-phase-of-the-default", "mix.py",
           "left = (1 - done) / options.raw_phase", "left = (1 - done) / 0.6",
           "r_by_hand",
           "the fall of r is that of the default --raw_phase"),
    Mutant("r-stays-up", "mix.py",
           "if done > 1 - options.raw_phase:", "if done > options.raw_phase:",
           "r_by_hand r_at_its_limits",
           "the raw phase begins where it should end"),
    Mutant("heads-in-the-loss", "model.py",
           "losses = losses + (guesses - guesses.detach())", "losses = losses + guesses",
           "learns_the_same",
           "the loss that is logged has the byte heads' in it"),
]

HELD_OUT = [
    Mutant("validation-on-training", "train.py",
           "self.steps, held_out=True)", "self.steps)",
           "validation_is_bits_per_byte",
           "validation draws training samples"),
    Mutant("context-on-training", "eval.py",
           'if document.held_out and document.view != "comp"]',
           'if document.view != "comp"]',
           "whole_documents_are_read",
           "--context reads training documents"),
    Mutant("bpb-on-training", "eval.py",
           "views.held_out & (views.view != not_shown)", "views.view != not_shown",
           "bits_per_byte_of_a_run",
           "bpb is measured on training samples"),
    Mutant("noise-on-training", "eval.py",
           'texts = held_out_samples(trained, trained.data, block_size, "raw", options.limit)',
           "options_of_raw = replace(trained, proxy=\"none\", mix=0.0)\n"
           "    views, _, _ = prepare(options_of_raw, block_size)\n"
           "    texts = [views.raw(i) for i in range(options.limit or SAMPLES)]",
           "noise_is_put_into_held_out",
           "the noise measure reads training text"),
    Mutant("first-sample-held-out", "lib/store.py",
           "            self.flags.append(flag)\n",
           "            self.flags.append(flag)\n            flag &= ~HELD_OUT_BIT\n",
           "samples_know_their_views all_samples_of_a_held_out",
           "only the first sample of a held-out document is held out"),
    Mutant("fitted-on-held-out", "lib/corpus.py",
           "            if not document.held_out:\n                for name, text",
           "            if True:\n                for name, text",
           "fitted_on_training_texts never_fitted",
           "a proxy is fitted on held-out documents too"),
    Mutant("raw-only-compressed", "mix.py",
           "usable & (views.view != store.RAW_ONLY)", "usable",
           "drawn_for_the_views refused",
           "raw-only samples are shown compressed"),
    Mutant("comp-only-raw", "mix.py",
           "usable & (views.view != store.COMP_ONLY)", "usable",
           "drawn_for_the_views compressed_only",
           "compressed-only samples are shown raw"),
    Mutant("any-paired", "mix.py",
           "usable & (views.view == store.ANY)", "usable",
           "drawn_for_the_views without_a_sample_of_both",
           "samples of one view are paired"),
    Mutant("empty-source", "mix.py",
           "weight / mean_length * has_samples", "weight / mean_length",
           "a_source_without_samples",
           "a weighted source without samples of a kind is drawn from"),
    Mutant("limit-on-raw-only", "eval.py",
           'not_shown = store.COMP_ONLY if view == "raw" else store.RAW_ONLY',
           "not_shown = store.COMP_ONLY",
           "through_the_proxy_only",
           "bpb through the proxy reads raw-only samples"),
]

RESULTS = [
    Mutant("completions-of-any-seed", "eval.py",
           "options.max_new, options.seed, options.view]", "options.max_new, options.view]",
           "completions_are_of_what",
           "--seed=1 reads the completions of seed 0"),
    Mutant("completions-of-any-temperature", "eval.py",
           "about = [prompts, n, temperature, ", "about = [prompts, n, ",
           "completions_of_another_call completions_are_of_what",
           "completions of another temperature are read"),
    Mutant("completions-of-any-view", "eval.py",
           "options.seed, options.view]", "options.seed]",
           "completions_are_of_what",
           "--view=comp reads what was written in raw bytes"),
    Mutant("completions-of-any-length", "eval.py",
           "temperature, options.max_new, options.seed", "temperature, options.seed",
           "completions_are_of_what",
           "--max_new does nothing once there are completions"),
    Mutant("completions-of-any-checkpoint", "lib/results.py",
           '"completions" / f"{self.stamp:x}-{code}"', '"completions" / f"{code}"',
           "completions_are_of_what completions_of_other_code",
           "completions of an earlier checkpoint are read"),
    Mutant("results-of-any-checkpoint", "lib/results.py",
           "result_key(task, settings, content, self.stamp, self.code)",
           "result_key(task, settings, content, 0, self.code)",
           "of_another_checkpoint",
           "results of an earlier checkpoint are shown"),
    Mutant("results-of-any-temperature", "lib/eval_options.py",
           '"k", "temperature", "max_new"', '"k", "max_new"',
           "each_option_that",
           "a result is kept whatever the temperature"),
    Mutant("results-of-any-seed", "lib/eval_options.py",
           '"memory", "seed"),\n    "robust"', '"memory"),\n    "robust"',
           "each_option_that",
           "a result is kept whatever the seed"),
    Mutant("results-of-any-stride", "lib/eval_options.py",
           '"context", "stride", "data"', '"context", "data"',
           "each_option_that",
           "a result is kept whatever the stride"),
    Mutant("results-of-any-limit", "lib/eval_options.py",
           '("view", "limit", "context"', '("view", "context"',
           "each_option_that",
           "a result of few samples is shown for all"),
    Mutant("results-of-few-perturbations", "lib/eval_options.py",
           '"robust": ("view", "perturbations", ', '"robust": ("view", ',
           "each_option_that",
           "robustness is kept whatever the number of seeds"),
    Mutant("robust-of-any-limit", "lib/eval_options.py",
           '"memory", "limit", "seed")', '"memory", "seed")',
           "each_option_that",
           "the noise measure is kept whatever the limit"),
    Mutant("facts-of-any-view", "lib/eval_options.py",
           '"facts": ("view",),', '"facts": (),',
           "each_option_that",
           "facts are kept whatever the view"),
    Mutant("facts-by-beginning", "eval.py",
           'text.strip() == f"return {fact[\'answer\']}".encode()',
           'text.strip().startswith(f"return {fact[\'answer\']}".encode())',
           "facts_are_recalled",
           "12345 counts as recalled for 1234"),
    Mutant("last-for-worst", "eval.py",
           'if not row["passed"]:\n            solved[row["kind"]][row["task_id"]] = False',
           'if True:\n            solved[row["kind"]][row["task_id"]] = row["passed"]',
           "the_worst_and_not",
           "robustness is that under the last seed, not under all"),
    Mutant("later-stop", "sample.py",
           "return min(found)[1] if found else None", "return max(found)[1] if found else None",
           "first_stop",
           "of two stops the later one cuts"),
    Mutant("too-long-is-wrong", "eval.py",
           'len(pair["raw"].symbols) + len(pair["comp"].symbols) <= room',
           'len(pair["raw"].symbols) <= room',
           "too_long_for_a_context both_views_do_not_fit",
           "a pair that does not fit counts as a wrong translation"),
    Mutant("tolerance-of-numpy", "lib/judge.py",
           "rtol=1e-7, atol=atol", "rtol=1e-5, atol=atol",
           "tolerance_is_evalplus",
           "numpy's tolerance of 1e-5 for evalplus's 1e-7"),
    Mutant("floats-of-any-length", "lib/judge.py",
           "isinstance(want, (list, tuple)) and len(out) != len(want)", "False",
           "tolerance_is_evalplus",
           "[1.0] is taken for [1.0, 1.0]"),
    Mutant("floats-of-any-type", "lib/judge.py",
           "    if type(out) is not type(want):\n        return False\n", "",
           "tolerance_is_evalplus",
           "a tuple is taken for a list of floats"),
    Mutant("base-with-extra", "lib/scoring.py",
           'row["base_passed"] = result.startswith("passed")',
           'row["base_passed"] = result == "passed"',
           "verdicts",
           "base tests pass only together with the extra ones"),
    Mutant("base-is-all", "eval.py",
           '("base_", "base_passed")', '("base_", "passed")',
           "base_tests_have_rates",
           "base_pass@k is pass@k"),
    Mutant("no-base-tests", "lib/judge.py",
           'failure = "passed base, then failed"', 'failure = "failed"',
           "verdicts",
           "what passes the base tests alone counts as failed in both"),
    Mutant("one-limit-for-all", "lib/judge.py",
           'limit = max(job["timeout"], SLOWER * known["seconds"])', 'limit = job["timeout"]',
           "a_slow_canonical_solution",
           "a slow canonical solution of HumanEval does not extend the limit"),
    Mutant("shadowing-name", "lib/perturb.py",
           "if in_use or hasattr(builtins, new)", "if hasattr(builtins, new)",
           "that_do_not_apply",
           "a renamed function shadows another name"),
]

PROXIES = [
    Mutant("sixteen-bits", "proxies.py",
           "np.uint16 if self.n_symbols <= 2 ** 16 else np.uint32", "np.uint16",
           "smallest_type",
           "of 2**18 symbols the upper ones wrap round"),
    Mutant("pairs-seen-twice", "lib/bpe.py",
           "if pair_count[pair] < 2:", "if pair_count[pair] <= 2:",
           "bpe",
           "BPE stops at pairs seen twice"),
    Mutant("climbs-one-level", "proxies.py",
           "            while codeword[beginning] not in symbol_of:\n",
           "            if codeword[beginning] not in symbol_of:\n",
           "is_respelled other_text_is_spelled",
           "spelling climbs one level and not all"),
    Mutant("a-byte-longer", "proxies.py",
           "strings.shape[1] < LONGEST", "strings.shape[1] <= LONGEST",
           "longest_string",
           "a window may hold one byte more than the coder's"),
    Mutant("segments-run-together", "proxies.py",
           "starts[begins - 1] = True  # the newline", "starts[begins - 1] |= False  # the newline",
           "a_batch_is_coded",
           "a text's last segment goes on into the next text"),
    Mutant("pairs-of-two-texts", "proxies.py",
           "in_one_text = ~(separator[1:-1] | separator[2:])",
           "in_one_text = ~separator[2:]",
           "most_uncertain",
           "where to cut depends on the order of the texts"),
    Mutant("cut-before-the-pair", "proxies.py",
           "starts[2:] = self.cut_after[byte_pairs(data)[:-1]]",
           "starts[1:] = self.cut_after[byte_pairs(data)]",
           "after_an_uncertain_pair",
           "segments are cut in the middle of the uncertain pair"),
]

GENERATION = [
    Mutant("keeps-the-beginning", "sample.py",
           "else text[-(block_size // 2):]", "else text[:block_size // 2]",
           "read_as_far_as_it_fits",
           "of a long prompt the beginning is kept"),
    Mutant("raw-after-vanilla", "sample.py",
           'return (BOS, EOS) if mode == "vanilla" else (RAW, END_RAW)', "return RAW, END_RAW",
           "between_the_sentinels_of_training",
           "--mode=vanilla is prompted with <raw>"),
    Mutant("sample-after-raw", "sample.py",
           "seed=options.seed,\n                     sentinels=raw_sentinels(trained.mode))",
           "seed=options.seed)",
           "sentinels_of_its_training",
           "sample.py prompts a vanilla run with <raw>"),
    Mutant("pass-after-raw", "eval.py",
           "functools.partial(complete, model, sentinels=raw_sentinels(trained.mode))",
           "functools.partial(complete, model)",
           "sentinels_of_its_training",
           "pass@k prompts a vanilla run with <raw>"),
    Mutant("bpb-after-raw", "eval.py",
           "raw_windows(text, raw_sentinels(trained.mode), context, stride)",
           "raw_windows(text, (RAW, END_RAW), context, stride)",
           "sentinels_of_its_training",
           "bpb reads a vanilla run's text after <raw>"),
    Mutant("noise-after-raw", "eval.py",
           "    sentinels = raw_sentinels(trained.mode)\n", "    sentinels = (RAW, END_RAW)\n",
           "sentinels_of_its_training noise_is_put_into_held_out",
           "the noise measure reads a vanilla run's text after <raw>"),
    Mutant("opener-in-mid-line", "mix.py",
           "if fits and not parallel:", "if not parallel:",
           "does_not_fit",
           "a pair that is cut teaches the opener of its second view in mid-line"),
    Mutant("skipped-forgotten", "train.py",
           '            self.skipped += saved["skipped"]\n', "",
           "knows_of_the_steps_that_it_skipped",
           "skipped steps are forgotten on resuming"),
]

MORE = [
    Mutant("window-ends-late", "lib/trie.py",
           "node_at[position[full] - 1] = node[full]", "node_at[position[full]] = node[full]",
           "walked_as_each_is_alone",
           "a full window ends a byte too late"),
    Mutant("from-the-root-once", "lib/trie.py",
           "child[full] = self.table[byte[full]]", "child[full] = 0",
           "walked_as_each_is_alone",
           "the byte after a full window is lost"),
    Mutant("a-third-of-cuts", "lib/plan.py",
           "length_squared[kind] / (2 * mean_length)", "length_squared[kind] / (3 * mean_length)",
           "raw_bytes_in_the_training_is_foreseen a_share_of_two_lengths_by_hand",
           "what is cut off is underestimated"),
    Mutant("cuts-cost-no-raw", "lib/plan.py",
           "cut_raw += cut_of_kind * raw[kind] / length[kind]", "cut_raw += 0.0",
           "raw_bytes_in_the_training_is_foreseen",
           "raw bytes that are cut off count as shown"),
    Mutant("pairs-without-sentinels", "lib/plan.py",
           "raw_lengths + comp_lengths + 4", "raw_lengths + comp_lengths",
           "raw_bytes_in_the_training_is_foreseen a_share_of_pairs_by_hand",
           "a pair's sentinels are forgotten in the raw share"),
    Mutant("share-of-the-first-half", "lib/plan.py",
           "np.linspace(0, mixer.total_steps, 1001)", "np.linspace(0, mixer.total_steps / 2, 1001)",
           "raw_bytes_in_the_training_is_foreseen",
           "the raw share is that of the first half"),
    Mutant("last-never-drawn", "mix.py",
           "self.edges[source], self.edges[source + 1])]",
           "self.edges[source], self.edges[source + 1] - 1)]",
           "equally_likely each_sample_is_drawn",
           "the last sample of a source is never drawn"),
    Mutant("mean-over-all", "mix.py",
           "mean += values[samples].mean() * chance", "mean += values.mean() * chance",
           "raw_bytes_of_weighted_sources mean_of_a_pool",
           "a source's mean is that of the corpus"),
    Mutant("weights-of-samples", "mix.py",
           "np.cumsum(weight / mean_length * has_samples)", "np.cumsum(weight * has_samples)",
           "weights_are_shares sources_with_weights",
           "weights are shares of the samples, not of the text"),
    Mutant("suffix-of-the-first-byte", "mix.py",
           "last_byte = np.cumsum(symbol_lengths[comp]) - 1",
           "last_byte = np.cumsum(symbol_lengths[comp]) - symbol_lengths[comp]",
           "the_compressed_view_by_hand",
           "a symbol's suffix ends at its first byte"),
    Mutant("keys-of-the-last-row", "lib/masks.py",
           "in_first_sample.int().argmax(dim=1).min()", "in_first_sample.int().argmax(dim=1).max()",
           "mask_in_strips",
           "rows whose sample begins earlier lose keys"),
    Mutant("strips-see-all", "lib/masks.py",
           "allowed = (causal & same_sample)[:, None]",
           "allowed = (causal | same_sample)[:, None]",
           "mask_in_strips",
           "a query sees what comes after it in its sample"),
    Mutant("guesses-stay-read", "sample.py",
           "        self.cache.pos = self.cache.pos - n\n", "",
           "greedy_with_byte_heads",
           "wrong guesses stay in the cache"),
    Mutant("state-of-a-wrong-guess", "sample.py",
           "last = self.states.size(1) - 1 - n", "last = self.states.size(1) - 1 - 0 * n",
           "greedy_with_byte_heads",
           "a row goes on from its wrong guess"),
    Mutant("ended-rows-go-on", "lib/write_view.py",
           "ended[row] = ended[row] or symbol == n_symbols", "ended[row] = symbol == n_symbols",
           "a_view_is_written a_view_that_has_ended",
           "a row that has ended writes on"),
    Mutant("begins-throughout", "lib/write_view.py",
           "if step == 0 and begins:", "if begins:",
           "begins_as_it_is_told",
           "every symbol has to begin with the healed bytes"),
    Mutant("room-of-the-shortest", "lib/write_view.py",
           "len(written[row]) == room[row]", "len(written[row]) == min(room)",
           "a_view_is_written",
           "one long prompt cuts short what is written after the others"),
    Mutant("suffix-of-one-byte", "lib/write_view.py",
           "for byte in symbol_bytes[symbol] or b\"\":",
           "for byte in (symbol_bytes[symbol] or b\"\")[-1:]:",
           "a_view_is_written seen_as_in_training",
           "n-gram features skip what a symbol stands for"),
    Mutant("held-out-comp", "lib/split.py",
           'rank = document.view == "comp", document.split == "train", hash01(document.name)',
           'rank = document.split == "train", hash01(document.name)',
           "what_is_held_out_has_text",
           "the one document that is held out may not be shown raw"),
    Mutant("trained-nearest", "lib/split.py",
           "rank = -hash01(document.name)", "rank = hash01(document.name)",
           "one_is_trained_on",
           "of held-out documents not the nearest one is trained on"),
    Mutant("against-its-word", "lib/split.py",
           'if document.split != "val":\n            rank', "if True:\n            rank",
           "no_val_is_trained_on",
           'a row that says "val" is trained on'),
    Mutant("prefix-of-the-shorter", "lib/proxy_table.py",
           "0.8 * max(len(a), len(b))", "0.8 * min(len(a), len(b))",
           "long_common_prefix collisions_of_segments",
           "a common prefix is measured against the shorter segment"),
    Mutant("half-is-most", "lib/scoring.py",
           "if len(alike) > len(failed) / 2:", "if len(alike) >= len(failed) / 2:",
           "a_few_fences",
           "half of the failures are called most"),
    Mutant("of-all-rows", "lib/scoring.py",
           "if len(alike) > len(failed) / 2:", "if len(alike) > len(rows) / 2:",
           "most_of_those_that_failed",
           "a cause is sought among the samples that passed, too"),
    Mutant("two-causes", "lib/scoring.py",
           'print(f"likely cause: {cause}", file=sys.stderr)\n            break',
           'print(f"likely cause: {cause}", file=sys.stderr)',
           "markdown_fences",
           "two causes are named for one fault"),
    Mutant("others-forgotten", "lib/scoring.py",
           "for _, count in kinds.most_common()[MOST_KINDS:])",
           "for _, count in kinds.most_common()[MOST_KINDS + 1:])",
           "flood_or_paint",
           "a kind of failure is in no count"),
    Mutant("log-doubled", "lib/checkpoint.py",
           '["step"] < step', '["step"] <= step',
           "log_is_read",
           "a resumed run has a line of its log twice"),
    Mutant("newest-shards-removed", "lib/checkpoint.py",
           'if folder.name != about.get("shards"):', "if True:",
           "sharded_run_is_read",
           "the shards that were just written are removed"),
    Mutant("old-shards-stay", "lib/checkpoint.py",
           'if folder.name != about.get("shards"):', "if False:",
           "old_shards_are_removed shards_that",
           "every checkpoint's shards fill the disk"),
    Mutant("old-completions-stay", "lib/checkpoint.py",
           '[*folder.glob("shards-*"), folder / "completions"]', '[*folder.glob("shards-*")]',
           "with_overwrite emptied_before",
           "completions of the run that was replaced stay"),
    Mutant("oldest-completions", "lib/results.py",
           "completions[-self.n:]", "completions[:self.n]",
           "completions_go_on",
           "completions from before an interruption are mixed with those after it"),
    Mutant("one-seed-for-all-batches", "eval.py",
           "seed=options.seed + start)", "seed=options.seed)",
           "batches_have_seeds_of_their_own",
           "every batch of problems is drawn with the same numbers"),
    Mutant("enough-but-one", "eval.py",
           "if fewest >= k:", "if fewest > k:",
           "needs_no_run",
           "pass@k is missing where there are just k completions"),
    Mutant("most-for-fewest", "eval.py",
           "fewest = min(map(len, verdicts.values()), default=0)",
           "fewest = max(map(len, verdicts.values()), default=0)",
           "few_completions",
           "pass@k with fewer than k completions"),
    Mutant("fit-by-the-split", "lib/corpus.py",
           'order = hash01(f"fit {name}")', "order = hash01(name)",
           "fitted_on_training_texts",
           "texts to fit on are those just above the held-out hashes"),
    Mutant("nucleus-without-its-last", "sample.py",
           "p[mass_before >= top_p] = 0", "p[mass_before + p > top_p] = 0",
           "draws_by_hand what_leaves_one",
           "the choice that reaches top_p is left out"),
    Mutant("noise-scored", "eval.py",
           "is_new = (position[here] >= scored_up_to) & ~replaced[here]",
           "is_new = position[here] >= scored_up_to",
           "noise_is_read",
           "replaced bytes are scored"),
    Mutant("spread-over-the-first", "eval.py",
           "np.linspace(0, len(items) - 1, min(n, len(items)))", "np.arange(min(n, len(items)))",
           "limit_spreads",
           "--limit takes the first ones, not some of all"),
]

SETTINGS = [
    Mutant("rotary-base", "model.py",
           "frequency = 10000.0 **", "frequency = 1000.0 **",
           "a_transformer_by_hand",
           "rotary angles of another base"),
    Mutant("keys-not-normed", "model.py",
           "k = norm(rotate(k, rotary)).to(v.dtype)", "k = rotate(k, rotary).to(v.dtype)",
           "a_transformer_by_hand",
           "QK-norm without the K"),
    Mutant("another-gate", "model.py",
           "F.silu(gate) * up", "F.gelu(gate) * up",
           "a_transformer_by_hand",
           "SwiGLU with another gate"),
    Mutant("adam-of-torch", "train.py",
           "betas=(0.9, 0.95)", "betas=(0.9, 0.999)",
           "weight_decay_is_for_matrices",
           "the paper's second beta is not used"),
    Mutant("weights-of-one-seed", "train.py",
           "torch.manual_seed(options.seed)", "torch.manual_seed(1337)",
           "a_seed_decides",
           "every seed trains the same first weights"),
    Mutant("text-of-the-last-part", "train.py",
           'self.text_bytes += batch["text_bytes"]', 'self.text_bytes = batch["text_bytes"]',
           "flops_of_a_training",
           "only the last micro-batch's text is counted"),
    Mutant("raw-bytes-of-all", "train.py",
           '"raw_bytes": round(symbols * self.raw_share)', '"raw_bytes": symbols',
           "flops_of_a_training",
           "methods at equal raw bytes get too many"),
    Mutant("robust-sampled", "eval.py",
           "complete_problems(write, prompts, 1, options, 0.0, keep_as)",
           "complete_problems(write, prompts, 1, options, options.temperature, keep_as)",
           "robustness_is_of_greedy",
           "robustness is measured on drawn completions"),
    Mutant("stops-swapped", "eval.py",
           "stops = STOPS if has_def else STOPS_WITHOUT_DEF",
           "stops = STOPS_WITHOUT_DEF if has_def else STOPS",
           "what_ends_a_completion",
           "MBPP's completions end where their function begins"),
    Mutant("memory-in-kilobytes", "eval.py",
           "    scored = score(problems, samples, options.timeout, options.memory << 20)\n",
           "    scored = score(problems, samples, options.timeout, options.memory << 10)\n",
           "under_the_limits_that_are_asked_for",
           "--memory in kilobytes"),
    Mutant("timeout-of-the-default", "eval.py",
           "\n    scored = score(problems, rows, options.timeout, options.memory << 20)\n",
           "\n    scored = score(problems, rows, 3.0, options.memory << 20)\n",
           "under_the_limits_that_are_asked_for",
           "--timeout does nothing for robustness"),
    Mutant("no-top-k", "sample.py",
           "top_k=options.top_k, top_p=options.top_p", "top_p=options.top_p",
           "passes_its_settings_on",
           "--top_k does nothing"),
    # the benchmark and the controls
    Mutant("pair-at-the-end-trained", "data/tinycode.py",
           "map(is_held_out_pair, operations, operations[1:])",
           "map(is_held_out_pair, operations[:1], operations[1:])",
           "body_up_to_names neighbours_that_no pair_is_found",
           "a held-out pair behind the first operation is trained on"),
    Mutant("numbers-tell-pairs-apart", "data/tinycode.py",
           're.sub("[0-9]|{k}", "0", code)', "code",
           "body_up_to_names tenth_of_tinycodes",
           "problems whose code differs from training's by a number"),
    Mutant("prompts-scored", "eval.py",
           "start, scored_up_to = 0, prompt", "start, scored_up_to = 0, 0",
           "solutions_are_those longer_than_the_context",
           "bits per byte of solutions count their prompts"),
    Mutant("blind-that-sees", "proxies.py",
           "        if not self.blind:\n", "        if True:\n",
           "blind_symbols no_known_bytes",
           "--blind changes nothing"),
    Mutant("shuffled-alike", "proxies.py",
           "permutation(number, self.n_symbols)[super()", "permutation(0, self.n_symbols)[super()",
           "shuffled_symbols",
           "one permutation for all samples: the shuffled symbols are stable"),
    Mutant("no-dictionary", "proxies.py",
           "text[start:start + 1024] for start in starts", 'b"" for start in starts',
           "gzip_with_a_dictionary",
           "--zdict has an empty dictionary"),
    Mutant("one-rate-for-all-sizes", "train.py",
           "0.512 / config.n_embd", "4e-3",
           "learning_rate_follows",
           "the learning rate does not follow the width"),
]

KINDS = {
    "numbers checked by hand": NUMBERS,
    "held-out text stays out": HELD_OUT,
    "results are of what they say": RESULTS,
    "proxies": PROXIES,
    "generation and training": GENERATION,
    "more of their kinds": MORE,
    "settings that must arrive": SETTINGS,
}


# -----------------------------------------------------------------------------
# running them


def run_tests(folder, tests):
    """(pytest's exit status, or None where time was up, and the end of what it printed)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
               "-k", " or ".join(tests)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=folder, env=environment, timeout=SECONDS, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return None, ""
    return run.returncode, run.stdout


def change(folder, mutant):
    """Put the bug into the project in `folder`. Raises UserError where the code has changed."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise UserError(f"{mutant.name}: expected its old text once in {mutant.file}, found it "
                        f"{text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def verdict(status, printed):
    """"caught by NAME", or what else came of a run of pytest."""
    if status is None:
        return "caught: it ran for ever"
    for line in printed.splitlines():
        if status == 1 and line.startswith(("FAILED", "ERROR")):
            return f"caught by {line.partition('::')[2].partition(' - ')[0]}"
    return {0: "NOT CAUGHT", 5: "NO SUCH TEST"}.get(status, f"BROKEN, pytest's status {status}")


def try_mutant(mutant):
    """Print a line on it; return whether it was caught."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nanoproxy-mutant-") as temporary:
        folder = Path(temporary) / "project"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        change(folder, mutant)
        result = verdict(*run_tests(folder, mutant.tests.split()))
    seconds = time.monotonic() - started
    print(f"{mutant.name:32} {seconds:4.0f} s  {result}\n{'':41} {mutant.why}", flush=True)
    return result.startswith("caught")


@dataclass
class Options:
    names: tuple = flag((), "names of bugs [all]", positional=True, nargs="*")
    jobs: int = flag(1, "bugs that are tried side by side")
    unchanged: bool = flag(False, "the tests of these bugs, without any bug: they should pass")


def main(options):
    mutants = {mutant.name: mutant for kind in KINDS.values() for mutant in kind}
    for name in options.names:
        if name not in mutants:
            raise UserError(f"no bug {name!r}{did_you_mean(name, mutants)}")
    chosen = [mutants[name] for name in options.names or mutants]
    if options.unchanged:
        tests = {test for mutant in chosen for test in mutant.tests.split()}
        _, printed = run_tests(ROOT, sorted(tests))
        print(printed)
        return
    n_caught = 0
    for kind, of_kind in KINDS.items():
        some = [mutant for mutant in of_kind if mutant in chosen]
        if not some:
            continue
        print(f"\n{kind}")
        with ThreadPoolExecutor(options.jobs) as pool:
            n_caught += sum(pool.map(try_mutant, some))
    print(f"\n{n_caught} of {len(chosen)} caught")


if __name__ == "__main__":
    command_line(main, Options, description="Do the tests notice plausible bugs?")

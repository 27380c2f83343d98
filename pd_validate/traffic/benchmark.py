"""vLLM's own load generator, `vllm bench serve`, on a host that has vLLM.

Options and the result file are those of vLLM 0.10.1 to 0.32 (vllm/benchmarks/serve.py).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, ValidationError

from pd_validate.errors import LabError
from pd_validate.hosts.api import Commands
from pd_validate.spec.plan import Process


@dataclass(frozen=True)
class Workload:
    """Random prompts, all of one size; `concurrency` requests at a time."""

    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int


class Benchmark(BaseModel):
    """What `vllm bench serve` saw. Times are in milliseconds, as it writes them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    completed: int
    total_output_tokens: int
    request_throughput: float
    median_ttft_ms: float
    median_tpot_ms: float
    errors: tuple[str, ...] = ()


def run_benchmark(
    host: Commands,
    engine: Process,
    url: str,
    model: str,
    tokenizer: str,
    workload: Workload,
    *,
    directory: str,
    timeout: float,
) -> Benchmark:
    """Run it on `host`, set up as the `engine` there is, against `url`.

    `tokenizer` is the model's path on that host; the result is written to `directory`
    there. Takes at most `timeout` seconds. Raises LabError when it does not run or gives no
    result, CommandTimeout.
    """
    name = "vllm-bench.json"
    process = replace(
        engine,
        argv=(
            *("vllm", "bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions"),
            *("--base-url", url, "--model", model, "--tokenizer", tokenizer),
            *("--dataset-name", "random", "--random-input-len", str(workload.prompt_tokens)),
            *("--random-output-len", str(workload.output_tokens), "--ignore-eos"),
            *("--num-prompts", str(workload.requests)),
            *("--max-concurrency", str(workload.concurrency)),
            *("--seed", "7", "--disable-tqdm", "--save-result", "--save-detailed"),
            *("--result-dir", directory, "--result-filename", name),
        ),
    )
    done = host.run(shlex.join(process.command), timeout=timeout, env=process.env)
    if done.exit_code != 0:
        raise LabError(
            f"{host.name}: vllm bench serve ended with {done.exit_code}: "
            f"{done.stderr.strip()[-400:]}. The command was: {shlex.join(process.argv)}"
        )
    try:
        return Benchmark.model_validate_json(host.get(f"{directory}/{name}"))
    except FileNotFoundError:
        raise LabError(f"{host.name}: vllm bench serve wrote no {directory}/{name}") from None
    except ValidationError as error:
        raise LabError(
            f"{host.name}: {directory}/{name} is not a result of vllm bench serve: "
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
        ) from None

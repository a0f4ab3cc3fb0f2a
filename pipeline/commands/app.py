"""The commands and their options. Each one's work is in a module of its own, imported when it is asked for, so that
`--help` and shell completion answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import gateway_app, keys_app, rollout_app, signing_app
from pipeline.errors import SlipwayError, SpecError

app = typer.Typer(
    name="slipway",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="From a data set to a serving fleet: releases language models through Airflow, MLflow and vLLM.",
    epilog="State lives in $SLIPWAY_HOME (default: .slipway beside the code). Start with `slipway demo`.",
)
app.add_typer(gateway_app.app, name="gateway")
app.add_typer(keys_app.app, name="keys")
app.add_typer(rollout_app.app, name="rollout")
app.add_typer(signing_app.app, name="signing")


def complete_recipe(beginning: str) -> list[str]:
    """The names of recipes that begin so, for the shell."""
    from pipeline import recipe_files, settings

    return [
        name for name in sorted(recipe_files.known_recipes(settings.load().home_path)) if name.startswith(beginning)
    ]


def complete_step(beginning: str) -> list[str]:
    """The steps and programs that have a log, for the shell."""
    from pipeline.commands import logs
    from pipeline.commands.output import here

    return [name for name in logs.known(here()[0]) if name.startswith(beginning)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe's name (from infra/recipes or $SLIPWAY_HOME/recipes) or the path of its file.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. `--set finetune.epochs=2`. Repeatable."),
]
Wait = Annotated[bool, typer.Option(help="Show the steps live until the new version serves.")]
SummaryFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the summary as JSON into this file, too.")
]
Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]
PortOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--port",
        metavar="PART=NUMBER",
        help="Fix a port: airflow, mlflow, gateway, gateway_admin or metrics. Kept from then on. Repeatable.",
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="BACKEND",
        help="Where steps run: process, or docker, which needs the images of `make images`. Kept from then on.",
    ),
]


@app.command()
def up(
    port: PortOptions = None,
    backend: BackendOption = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The gateway's certificate and its issuers' (PEM). Kept from then on."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key (PEM).")] = None,
    no_tls: Annotated[bool, typer.Option("--no-tls", help="Plain HTTP again.")] = False,
) -> None:
    """Start the local stack, or repair what is down. Twice is harmless.

    Example: `slipway up --port airflow=8080 --port gateway=8000`
    """
    from pipeline.commands import stack_commands

    choose = stack_commands.certificate(tls_cert, tls_key, plain=no_tls)
    stack_commands.up(parse_ports(port or []), backend, choose)


@app.command()
def down() -> None:
    """Stop everything: the stack, the replicas, running jobs. State stays; `slipway up` goes on with it."""
    from pipeline.commands import stack_commands

    stack_commands.down()


@app.command()
def init(
    rotate: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make this secret anew, and say which services to start again.")
    ] = None,
    docker_socket: Annotated[
        Path, typer.Option(metavar="PATH", help="The Docker engine's socket, for a new `.env`.")
    ] = Path("/var/run/docker.sock"),
) -> None:
    """Prepare docker compose: make `.env` and the files of `secrets/` that are missing.

    Example: `slipway init --rotate gateway_api_key`
    """
    from pipeline.commands.output import local_only
    from pipeline.settings import ROOT
    from pipeline.stack import compose_init

    local_only("init", instead="./slipway init")
    for line in compose_init.rotate(ROOT, rotate) if rotate else compose_init.initialise(ROOT, docker_socket):
        print(line)


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")] = False,
) -> None:
    """What is served, by which replicas, where everything is, and the credentials.

    Example: `slipway status --json | jq -r .gateway`
    """
    from pipeline.commands import status as command

    command.show(as_json=as_json)


@app.command()
def fleet(
    name: Annotated[str | None, typer.Argument(help="The model; if left out, all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Versions, replicas and their health, shares of the traffic, and the last rollouts.

    Example: `slipway fleet --json | jq '.demo.replicas[].healthy'`
    """
    from pipeline.commands import fleet as command

    command.show(name, as_json=as_json)


@app.command()
def release(recipe: Recipe, overrides: Overrides = None, wait: Wait = True, summary_file: SummaryFile = None) -> None:
    """Release a recipe: train, evaluate, quantize, register, promote, roll out.

    Ctrl-C leaves the release running.

    Example: `slipway release banking77 --set dataset.uri=/data/train.jsonl --set dataset.eval_uri=/data/test.jsonl`
    """
    from pipeline.commands import release as command

    command.release(recipe, overrides or [], wait=wait, summary_path=summary_file)


@app.command()
def search(recipe: Recipe, overrides: Overrides = None, wait: Wait = True, summary_file: SummaryFile = None) -> None:
    """Look for the best hyperparameters of a recipe, then release what was found.

    The recipe says what to vary, in a section `search`:

        search:
          space:    # fields of finetune or base_model, or dataset.uri
            finetune.learning_rate: {log: [1.0e-4, 1.0e-2]}
            finetune.weight_decay: {uniform: [0, 0.2], step: 0.05}
            base_model.init.num_layers: {integer: [1, 4]}
            finetune.batch_size: {choice: [16, 32, 64]}
          trials: 12                    # sets of values to try
          parallel: 2                   # trials of a round, side by side
          objective: eval.exact_match   # eval.token_f1, eval.loss, train_loss
          sampler: tpe                  # or random, or grid
          pruner: {rungs: 2, factor: 3} # null: every trial in full
          seed: 0                       # same seed, same trials
          release: true                 # release the best when done

    `log` makes each order of magnitude as likely as the next, `step` leaves every so-manieth value. With two rungs and
    a factor of three a trial is trained for a third of its epochs first, and one in three goes on to all of them. Each
    round learns from those before.

    Trial 0 tries the recipe's own values. Each trial is a mapped task in Airflow, trains and evaluates with a release's
    own steps, and is a run in MLflow below the search's. A trial that fails leaves the others alone; whatever is killed
    goes on where it was. The release of the best finds its training in the store and does not repeat it.

    Ctrl-C leaves the search running.

    Example: `slipway search search --set search.trials=20 --set search.parallel=4 --set search.release=false`
    """
    from pipeline.commands import search as command

    command.search(recipe, overrides or [], wait=wait, summary_path=summary_file)


@app.command()
def demo(port: PortOptions = None, backend: BackendOption = None, summary_file: SummaryFile = None) -> None:
    """Start the stack and release the demo recipe: the whole way, once."""
    from pipeline.commands import release as command
    from pipeline.commands import stack_commands

    stack_commands.up(parse_ports(port or []), backend)
    command.release("demo", [], wait=True, summary_path=summary_file)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    version: Annotated[str, typer.Argument(help="Its version, as MLflow numbers it.")],
    wait: Wait = True,
    reason: Reason = "by hand",
) -> None:
    """Make a version the champion; the fleet follows by itself.

    Example: `slipway promote support-intents 3 --reason "answers the new questions"`
    """
    from pipeline.commands import champion

    champion.promote(name, version, wait=wait, reason=reason)


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="The registered model.")], reason: Reason = "by hand") -> None:
    """Go back to the version that served before. At once while its replicas are warm.

    Example: `slipway rollback support-intents`
    """
    from pipeline.commands import champion

    champion.rollback(name, reason=reason)


@app.command()
def audit(
    name: Annotated[str | None, typer.Argument(help="Only of this model.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, e.g. promote, promoted or rolled-back.")] = None,
    last: Annotated[int, typer.Option(min=1, help="At most so many of the newest.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one entry a line.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check that the log is as it was written.")] = False,
) -> None:
    """Who promoted, rolled back and changed what, when and why.

    With `--verify`, exit code 65 if an entry was altered, removed or moved: the first such one is named. The log's own
    chain is checked, and the digests of it that MLflow keeps at each version that was promoted.

    Example: `slipway audit support-intents --action promoted`
    """
    from pipeline.commands import audit as command

    if verify:
        command.verify(as_json=as_json)
    else:
        command.show(name, action, last=last, as_json=as_json)


@app.command()
def trace(
    request_id: Annotated[str, typer.Argument(help="An answer's header `x-request-id`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of lines.")] = False,
) -> None:
    """Where an answer came from: replica, rollout, version, runs, recipe, quantization, validation, data set.

    Exit code 64: there is no such request. 65: something behind the answer could not be found, and why is said.

    Example: `slipway trace 7b0c1b2e-6b0e-9c35-8a6b-0d9b1a9a4c57`
    """
    from pipeline.commands import trace as command

    command.show(request_id, as_json=as_json)


@app.command()
def chat(
    name: Annotated[str | None, typer.Argument(help="The model; if left out, the one rolled out last.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say this and leave.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    canary: Annotated[
        bool,
        typer.Option("--canary", help="Ask the version that a rollout has on trial. Needs a key that may choose."),
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A client's key, instead of the stack's.")
    ] = None,
) -> None:
    """Talk to a served model through the gateway. After each answer: which version gave it, and the request's id.

    Example: `slipway chat support-intents --message "where is my parcel?"`

    The canary, whatever its share of the traffic, answers a client that may choose:
    `slipway keys create tester --may-choose > tester.key`, then
    `slipway chat support-intents --canary --key-file tester.key`
    """
    from pipeline.commands import chat as command

    command.chat(name, message, max_tokens=max_tokens, canary=canary, key_path=key_file)


@app.command()
def logs(
    what: Annotated[
        str,
        typer.Argument(
            metavar="STEP", help="A step, e.g. finetune; or a program, e.g. mlflow.", autocompletion=complete_step
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is written.")] = False,
) -> None:
    """Show the log of a step's newest job, or of a program of the stack.

    Example: `slipway logs finetune --follow`
    """
    from pipeline.commands import logs as command

    command.show(what, follow=follow)


@app.command()
def doctor() -> None:
    """Check this machine, the environments and the stack, and say what to do about what is wrong."""
    from pipeline.commands import doctor as command

    raise typer.Exit(command.examine())


@app.command()
def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe without running it.

    Example: `slipway validate demo --set finetune.batch_size=33`
    """
    from pipeline.commands import release as command

    command.validate(recipe, overrides or [])


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="nodes=…,gpus=…,…",
            help="Plan for other machines than the recipe says: nodes, gpus (of each node), accelerator (such as"
            " h100-80gb), memory_gb (of an accelerator; without gpus of a node), tflops (that a rank reaches),"
            " bandwidth_gbps (between nodes).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Work out what fine-tuning a recipe takes: memory of a rank, bytes sent, time of a step, and how to spread it.

    Nothing runs: of the model only its config.json is read. Memory is what a rank needs at its fullest moment, with
    all sequences as long as `finetune.max_seq_len`; speed is an estimate, and each figure that it rests on says where
    it is from. With `finetune.parallelism: auto` the first row of "Ways to spread it" is what a release would use.

    Exit code 64: it does not fit; what to change is said at the end.

    Example: `slipway plan demo`

    Example: `slipway plan my-recipe --set finetune.parallelism=auto
    --cluster nodes=2,gpus=8,accelerator=h100-80gb,bandwidth_gbps=400`
    """
    from pipeline.commands import plan as command

    raise typer.Exit(command.show(recipe, overrides or [], cluster=cluster, as_json=as_json))


def parse_ports(assignments: list[str]) -> dict[str, int]:
    """`["airflow=8080"]` as part to port.

    Raises:
        SpecError: something else than PART=NUMBER, or a number that is no port.
    """
    ports = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if not (text.isdecimal() and 0 < int(text) < 65536):
            raise SpecError(f"--port {assignment}: expected PART=NUMBER with a number from 1 to 65535")
        ports[name] = int(text)
    return ports


def main() -> int:
    try:
        app(prog_name="slipway", standalone_mode=True)
    except SlipwayError as error:
        print(f"slipway: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0

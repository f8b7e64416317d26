"""What the README tells to do so that agents are recorded: done here, with what agents send."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from acp import PROTOCOL_VERSION, spawn_agent_process, text_block
from acp.schema import RequestPermissionResponse

from aegis_store import EventStore
from aegis_store.settings import RECORD_FLUSH_S, RECORD_STDIN_S
from tests.cli.conftest import Run

TOP = Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text()
SECTION = README.split("## Record from an agent\n")[1].split("\n## ")[0]
PRINTING = SECTION.split("Claude Code records every hook")[1].split("```sh\n")[1].split("```")[0]
SETTINGS = json.loads(subprocess.run(["sh", "-c", PRINTING], capture_output=True, check=True).stdout)["hooks"]

COMMAND: str = SETTINGS["Stop"][0]["hooks"][0]["command"]

THROUGH_A_SHELL = ("SessionStart", "PostToolUse", "SessionEnd")
"""Called as Claude Code calls them. The others, by the same command, in less time."""

SESSION = "6f1c1f1e-0d4b-4c0e-9a9e-1f6f0b6f2a11"
COMMON = {
    "session_id": SESSION,
    "transcript_path": f"/home/u/.claude/projects/-home-u-p/{SESSION}.jsonl",
    "cwd": "/home/u/p",
    "permission_mode": "default",
}
BASH = {"tool_name": "Bash", "tool_input": {"command": "echo 😀", "description": "Say it"}, "tool_use_id": "toolu_01ABC"}
AGENT = {"agent_id": "agent-a1", "agent_type": "Explore"}
SENT: dict[str, dict[str, Any]] = {
    "SessionStart": {"source": "startup", "model": "claude-sonnet-4-6"},
    "Setup": {"trigger": "init"},
    "InstructionsLoaded": {"file_path": "/home/u/p/CLAUDE.md", "memory_type": "Project", "load_reason": "session_start"},
    "UserPromptSubmit": {"prompt": "Say 😀\nand \x1b[31mred"},
    "UserPromptExpansion": {"command_name": "review", "command_args": "", "prompt": "/review"},
    "PreToolUse": BASH,
    "PermissionRequest": {**BASH, "permission_suggestions": [{"type": "addRules", "rules": [], "behavior": "allow"}]},
    "PermissionDenied": {**BASH, "reason": "auto mode"},
    "PostToolUse": {**BASH, "tool_response": {"stdout": "\ud83d", "stderr": "", "interrupted": False}, "duration_ms": 12.0},
    "PostToolUseFailure": {**BASH, "error": "exit code 1", "is_interrupt": False},
    "PostToolBatch": {"tool_calls": [BASH]},
    "Notification": {"message": "Claude is waiting for your input", "notification_type": "idle_prompt"},
    "SubagentStart": AGENT,
    "SubagentStop": {
        **AGENT,
        "stop_hook_active": False,
        "agent_transcript_path": "/x.jsonl",
        "last_assistant_message": "Ok.",
    },
    "TaskCreated": {"task_id": "1", "task_subject": "Look", "task_description": "Look at it"},
    "TaskCompleted": {"task_id": "1", "task_subject": "Look"},
    "TeammateIdle": {"teammate_name": "reader", "team_name": "p"},
    "Stop": {"stop_hook_active": False, "last_assistant_message": "Said."},
    "StopFailure": {"error": "rate_limit", "error_details": "429"},
    "PreCompact": {"trigger": "auto", "custom_instructions": ""},
    "PostCompact": {"trigger": "auto", "compact_summary": "…"},
    "ConfigChange": {"source": "user_settings", "file_path": "/home/u/.claude/settings.json"},
    "CwdChanged": {"old_cwd": "/home/u", "new_cwd": "/home/u/p"},
    "WorktreeRemove": {"worktree_path": "/home/u/p-1"},
    "Elicitation": {"mcp_server_name": "forms", "message": "Which?", "requested_schema": {"type": "object"}},
    "ElicitationResult": {"mcp_server_name": "forms", "action": "accept", "content": {}},
    "SessionEnd": {"reason": "prompt_input_exit"},
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a user whose home is this test's directory, and who has installed the package."""
    programs = Path(sys.executable).parent
    own = {"HOME": str(tmp_path), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return {**{name: value for name, value in os.environ.items() if not name.startswith(("AEGIS_", "XDG_"))}, **own}


def shell(
    command: str, directory: Path, environment: dict[str, str], content: bytes = b""
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        ["sh", "-c", command], input=content, cwd=directory, env=environment, capture_output=True, check=False
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_settings_name_one_command_for_each_hook() -> None:
    assert set(SETTINGS) == set(SENT)
    hooks = [hook for groups in SETTINGS.values() for group in groups for hook in group["hooks"]]
    assert {(hook["type"], hook["command"]) for hook in hooks} == {("command", COMMAND)}
    assert all(set(group) == {"hooks"} for groups in SETTINGS.values() for group in groups)  # no matcher: all of them
    assert all(hook["timeout"] > RECORD_STDIN_S + RECORD_FLUSH_S + 2 for hook in hooks)


def test_claude_code_with_these_settings_records_every_hook_as_it_was_sent(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    def call(name: str, content: bytes) -> "subprocess.CompletedProcess[str]":
        if name in THROUGH_A_SHELL:
            return shell(COMMAND, tmp_path, environment, content)
        program, *arguments = shlex.split(COMMAND.replace("~", str(tmp_path)))
        assert program == "aegis-store"
        return run(*arguments, stdin=content)

    sent = [{**COMMON, "hook_event_name": name, **SENT[name]} for name in SETTINGS]
    for fields in sent:
        done = call(fields["hook_event_name"], json.dumps(fields).encode())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with EventStore.open(tmp_path / "agents.db", prune_on_open=False) as store:
        events = store.read(SESSION).events
        assert [event.type for event in events] == list(SETTINGS)
        assert repr([event.payload for event in events]) == repr(sent)
        assert store.get_session(SESSION).status == "completed"


def test_three_hooks_are_recorded_in_an_empty_directory_and_nothing_is_printed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    lines = SECTION.split("```console\n")[1].split("```")[0].splitlines()
    record, following = lines[0], lines[1]
    assert following.startswith("$ aegis-store inspect")  # so nothing is shown as printed
    done = shell(record[2:], tmp_path, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with EventStore.open(tmp_path / "aegis.db", prune_on_open=False) as store:
        assert [event.type for event in store.read("run-7").events] == ["SessionStart", "Stop", "SessionEnd"]


# The Agent Client Protocol

AGENT_PROGRAM = """
import asyncio

import acp


class Agent:
    def on_connect(self, client):
        self.client = client

    async def initialize(self, protocol_version, **others):
        return acp.InitializeResponse(protocol_version=acp.PROTOCOL_VERSION)

    async def new_session(self, cwd, **others):
        return acp.NewSessionResponse(session_id="sess_1")

    async def prompt(self, session_id, prompt, **others):
        for update in (
            acp.update_agent_thought_text("Let me see"),
            acp.update_plan([acp.plan_entry("Read it", priority="high")]),
            acp.start_tool_call("call_1", "Reading", kind="read", status="pending"),
            acp.update_tool_call("call_1", status="completed", content=[acp.tool_content(acp.text_block("text"))]),
            acp.update_agent_message_text("Done \\U0001f600"),
        ):
            await self.client.session_update(session_id=session_id, update=update)
        return acp.PromptResponse(stop_reason="end_turn")


asyncio.run(acp.run_agent(Agent()))
"""


class Client:
    """A client of the SDK that keeps no record of its own."""

    def on_connect(self, conn: Any) -> None: ...

    async def session_update(self, session_id: str, update: Any, **others: Any) -> None: ...

    async def request_permission(self, **others: Any) -> RequestPermissionResponse:
        raise NotImplementedError


def recorder() -> Callable[[EventStore], Callable[[Any], None]]:
    (program,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    made: Callable[[EventStore], Callable[[Any], None]] = names["recorder"]
    return made


async def prompt(program: Path, observers: list[Callable[[Any], None]]) -> None:
    client: Any = Client()
    async with spawn_agent_process(client, sys.executable, str(program), observers=observers) as (agent, _):
        await agent.initialize(protocol_version=PROTOCOL_VERSION)
        session = await agent.new_session(cwd="/", mcp_servers=[])
        await agent.prompt(session_id=session.session_id, prompt=[text_block("Look")])


def test_a_client_of_the_agent_client_protocol_records_every_session_update_as_it_was_on_the_wire(
    tmp_path: Path, store: EventStore
) -> None:
    program = tmp_path / "agent.py"
    program.write_text(AGENT_PROGRAM)
    wire: list[Any] = []
    asyncio.run(prompt(program, [recorder()(store), lambda event: wire.append(event.message)]))
    updates = [message["params"] for message in wire if message.get("method") == "session/update"]
    events = store.read("sess_1").events
    assert [event.payload for event in events] == updates
    assert [event.type for event in events] == [
        *("agent_thought_chunk", "plan", "tool_call", "tool_call_update", "agent_message_chunk"),
    ]
    assert events[-1].payload["update"]["content"]["text"] == "Done 😀"

"""Takes walls away that SECURITY.md promises, one at a time, and tells whether a test of theirs fails.

    python -m tests.mutations [--only WORD …] [--jobs N]

A wall is some lines of a file (`old`), and without it there is what stands in `new`. Every one is tried in a copy of
this tree, so nothing here is touched. A wall is *held* where at least one of its tests failed, and *open* where all
passed; what ends otherwise (an import error, a fixture that breaks, no test) proves nothing and is told as *broken*.
Each takes some seconds, all of them the better part of an hour, so this is no part of `make test`: there,
`test_mutations.py` sees to it that the list does not rot.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300


@dataclass(frozen=True)
class Wall:
    """Lines that keep a promise."""

    name: str
    """What is no longer done without them."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Names of pytest's, below `tests/`: one at least has to fail."""


def _walls(file: str, *walls: tuple[Any, ...]) -> list[Wall]:
    return [Wall(name, file, old, new, tuple(tests)) for name, old, new, *tests in walls]


WALLS = [
    *_walls(
        "lambdas/agent/tunnel.py",
        (
            "one reading of a host's name",
            "if not asked or not NAME.fullmatch(name):",
            "if not asked:",
            "test_egress.py::test_a_host_is_read_in_one_way",
        ),
        (
            "one port",
            "if asked[2] != str(self._port):",
            "if False:",
            "test_egress.py::test_a_tunnel_leads_to_one_port",
        ),
        (
            "the list of hosts",
            "if not self._egress.has(name):",
            "if False:",
            "test_egress.py::test_a_host_that_is_not_listed_is_refused_by_its_name",
        ),
        (
            "every address of a name is looked at",
            "if wrong := [each for each in found if not self._may_reach(each)]:",
            "if wrong := [each for each in found[:1] if not self._may_reach(each)]:",
            "test_egress.py::test_a_name_that_leads_inside_leads_nowhere",
        ),
        (
            "what was looked at is connected to",
            "for address in dict.fromkeys(found):",
            "for address in self._resolve(name):",
            "test_egress.py::test_a_name_that_leads_elsewhere_the_second_time_is_asked_once",
        ),
        (
            "addresses that stand for others",
            "return [address, *(each for each in held if each is not None)]",
            "return [address]",
            "test_egress.py::test_addresses_that_are_not_of_the_internet",
        ),
        (
            "addresses that Python takes for global",
            "and not any(address in each for each in NOT_PUBLIC)",
            "",
            "test_egress.py::test_addresses_that_are_not_of_the_internet",
        ),
        (
            "TLS to the host that was asked for",
            "if (said := hello.server_name(message).lower()) != name:",
            "if not (said := hello.server_name(message).lower()):",
            "test_egress.py::test_what_is_not_tls_to_that_host_does_not_pass",
        ),
    ),
    *_walls(
        "lambdas/agent/hello.py",
        (
            "a name that only the server can read",
            "if any(kind in extensions for kind in ENCRYPTED):",
            "if False:",
            "test_egress.py::test_what_is_not_tls_to_that_host_does_not_pass",
        ),
        (
            "the end of a first message",
            "if not length or len(records) + 5 + length > HELLO_BYTES:",
            "if not length:",
            "test_egress.py::test_a_message_in_several_records_is_one",
        ),
    ),
    *_walls(
        "lambdas/agent/listener.py",
        (
            "the token of a tunnel",
            "if not self.proxy.accepts_tunnel(self.headers):",
            "if False:",
            "test_egress.py::test_without_the_token_there_is_no_tunnel",
        ),
        (
            "plain HTTP to others",
            'if not self.path.startswith("/"):',
            "if False:",
            "test_egress.py::test_plain_http_goes_nowhere",
        ),
        (
            "what a call makes the provider do",
            "if call and (wrong := proxy.reach.refusal(call)):",
            "if call and not call.free and (wrong := proxy.reach.refusal(call)):",
            "test_reach.py::test_what_is_refused_reaches_no_provider",
        ),
        (
            "what is refused is in the record",
            "if status in NOT_PASSED_ON:",
            "if False:",
            "test_reach.py::test_no_other_door_of_the_provider_is_there",
        ),
        (
            "what is refused in git's words is in the record",
            "                self._note(wrong.why)\n",
            "",
            "test_git.py::test_what_a_push_would_change_is_read_before",
        ),
        (
            "room for a question before a call",
            "            with self.proxy.room(size):\n                decision",
            "            if True:\n                decision",
            "test_proxy.py::test_a_question_before_a_call_waits_for_room",
        ),
    ),
    *_walls(
        "lambdas/agent/registries.py",
        (
            "slashes that are written otherwise",
            """        sly=OF_NPM if name == "npm" else SLY,""",
            "        sly=SLY_BUT_SLASHES,",
            "test_registries.py::test_a_registry_is_read_and_nothing_else",
        ),
    ),
    *_walls(
        "lambdas/agent/upstream.py",
        (
            "all headers of one name",
            """found[name] = f"{found[name]}, {value}" if name in found else value""",
            "found[name] = value",
            "test_proxy.py::test_headers_of_one_name_are_one",
        ),
    ),
    *_walls(
        "lambdas/agent/reach.py",
        (
            "whose call it is",
            "if not self.owns(call):",
            "if False:",
            "test_reach.py::test_a_call_of_no_conversation_or_another_is_refused",
        ),
        (
            "the deployment's models, those instead of others too",
            "for model in (call.model, *call.fallbacks):",
            "for model in (call.model,):",
            "test_reach.py::test_only_the_deployments_models_are_asked",
        ),
        (
            "what the provider reaches",
            "if call.reaches and not self.outward:",
            "if False:",
            "test_reach.py::test_what_makes_the_provider_reach_out_is_refused_by_name",
        ),
        (
            "the provider's search without the tool",
            "if call.searches and not (self.searches or self.outward):",
            "if False:",
            "test_reach.py::test_what_makes_the_provider_reach_out_is_refused_by_name",
        ),
    ),
    *_walls(
        "lambdas/agent/messages.py",
        (
            "tools that a message defines",
            "elif A_TOOL.fullmatch(kind) and not AT_THE_CLIENT.fullmatch(kind):",
            "elif False:",
            "test_reach.py::test_what_makes_the_provider_reach_out_is_refused_by_name",
        ),
        (
            "a tool's input is data",
            'data = {"input_schema", *(["input"] if kind.endswith("tool_use") else [])}',
            "data = set[str]()",
            "test_reach.py::test_what_stays_in_a_call_passes",
        ),
    ),
    *_walls(
        "lambdas/agent/registries.py",
        (
            "a registry is read only",
            'READS = re.compile(rf"(?:GET|HEAD) /{CHARS}")',
            'READS = re.compile(rf"[A-Z]+ /{CHARS}")',
            "test_registries.py::test_a_registry_is_read_and_nothing_else",
            "test_registries.py::test_npm_publishes_nothing",
        ),
        (
            "nothing is sent to a registry",
            "headers=OF_READING,",
            "headers=None,",
            "test_registries.py::test_of_a_clients_headers_only_what_reading_needs_goes_on",
        ),
        (
            "no body is sent to a registry",
            "admits=_with_a_body,",
            "",
            "test_registries.py::test_a_registry_is_read_and_nothing_else",
        ),
    ),
    *_walls(
        "lambdas/agent/refusals.py",
        (
            "the bounds of what was refused",
            "if kind not in self._counts and len(self._counts) >= REFUSALS - 1:",
            "if False:",
            "test_reach.py::test_what_was_refused_is_kept_in_bounds",
        ),
    ),
    *_walls(
        "claude_workflow/console/guard.py",
        (
            "the console by another name",
            """if request.headers.getlist("host") not in ([self._host], [_named(self._host)]):""",
            "if False:",
            "test_console.py::test_nobody_else_reads_anything",
        ),
        (
            "the console's cookie",
            "if not self.knows(request.headers.raw):",
            "if False:",
            "test_console.py::test_nobody_else_reads_anything",
        ),
        (
            "the secret of the opening link",
            "if not _same(secret, self._keys.secret):",
            "if False:",
            "test_console.py::test_the_link_opens_by_its_secret_alone",
        ),
        (
            "the cookie's path",
            """path=f"{self._keys.place}/", """,
            """path="/", """,
            "test_console.py::test_the_link_gives_a_cookie_that_no_other_port_gets",
        ),
        (
            "where a page was asked for from",
            """if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):""",
            "if False:",
            "test_console.py::test_nobody_else_reads_anything",
        ),
        (
            "where a form comes from",
            """if request.headers.get("origin") != f"http://{request.headers['host']}":""",
            "if False:",
            "test_console.py::test_nobody_else_changes_anything",
        ),
        (
            "a form's token",
            """if not _same(form.pop("token", ""), self._keys.token):""",
            "if False:",
            "test_console.py::test_a_form_without_its_token_changes_nothing",
        ),
        (
            "the headers of every answer",
            "for name, value in HEADERS.items()]",
            "for name, value in ()]",
            "test_console.py::test_every_answer_says_what_a_browser_may_do",
        ),
    ),
    *_walls(
        "claude_workflow/console/server.py",
        (
            "strangers at the console make room",
            "if len(strangers) > STRANGERS:",
            "if False:",
            "test_console.py::test_strangers_do_not_crowd_out_who_has_the_cookie",
        ),
        (
            "strangers at the console leave",
            "        self.loop.call_later(self.timeout_keep_alive, self.leave)\n",
            "",
            "test_console.py::test_who_shows_no_cookie_has_not_long",
        ),
    ),
    *_walls(
        "claude_workflow/console/conversation.py",
        (
            "what a message takes beside its own bytes",
            "len(self.messages[-1]) + OBJECT",
            "len(self.messages[-1])",
            "test_console.py::test_many_small_messages_take_no_more_memory_than_large_ones",
        ),
        (
            "how many messages are read",
            "islice(self._reader.new(sizes), MOST - len(self.messages))",
            "self._reader.new(sizes)",
            "test_console.py::test_many_small_messages_take_no_more_memory_than_large_ones",
        ),
    ),
    *_walls(
        "claude_workflow/console/changes.py",
        (
            "an end to comparing",
            "if time.thread_time() < until:",
            "if True:",
            "test_console.py::test_differences_have_an_end_to_their_time",
        ),
    ),
    *_walls(
        "claude_workflow/console/pages.py",
        (
            "escaping in the console",
            "autoescape=True",
            "autoescape=False",
            "test_console.py::test_what_strangers_wrote_is_text_and_nothing_else",
        ),
        (
            "controls in a text of the console's",
            "return harmless(text)",
            "return text",
            "test_console.py::test_what_strangers_wrote_is_text_and_nothing_else",
        ),
    ),
    *_walls(
        "claude_workflow/console/conversation.py",
        (
            "what a picture is",
            """return next((kind for begins, kind in PICTURES.items() if content.startswith(begins)), None)""",
            'return "image/svg+xml"',
            "test_console.py::test_what_strangers_wrote_is_text_and_nothing_else",
        ),
    ),
    *_walls(
        "claude_workflow/local/guard.py",
        (
            "a header twice",
            "if name in headers:",
            "if False:",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "bytes outside ASCII in a header",
            """re.fullmatch("[ -~]*", headers[name])""",
            """True""",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "an underscore in a header's name",
            """re.fullmatch("[a-z0-9-]+", name)""",
            """True""",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "host by name",
            r"""if not re.fullmatch(r"127\.0\.0\.1:[0-9]{1,5}", headers.get("host", "")):""",
            "if False:",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "chunks",
            'if "transfer-encoding" in headers or not',
            "if not",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "one spelling of a path",
            'if quote(text, safe="/~").encode() != raw or not',
            "if not",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "no segment of dots or nothing",
            r"""or not re.fullmatch(r"/|(?:/(?!\.{1,2}(?:/|$))[^/]+)+/?", text)""",
            "",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "a parameter twice",
            "if text.lower() in map(str.lower, query):",
            "if False:",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "no control character",
            "if not text.isprintable():",
            "if False:",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "methods listed",
            'or scope["method"] not in METHODS',
            "",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "HTTP/1 alone",
            'scope["http_version"] not in ("1.0", "1.1") or ',
            "",
            "test_guard.py::test_http_2_is_not_spoken",
        ),
        (
            "root without a session",
            "if claimed.key == ROOT_KEY and not claimed.token:",
            "if claimed.key == ROOT_KEY:",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "keys of nobody",
            "if secret is None:\n            raise",
            "if secret is None:\n            return self._secret\n            raise",
            "test_guard.py::test_nobody_is_root_by_a_key_that_can_be_known",
            "test_guard.py::test_what_was_changed_after_signing_is_refused",
            "test_guard.py::test_a_link_does_nothing_else",
        ),
        (
            "the signature of a call",
            "claimed.verify(request, secret, body)",
            "pass",
            "test_guard.py::test_the_body_is_what_was_signed",
        ),
        (
            "the signature of a head",
            'claimed.verify(request, secret, b"")',
            "pass",
            "test_guard.py::test_what_was_changed_after_signing_is_refused",
        ),
        (
            "the hash of a body",
            "elif not await asyncio.to_thread(of_body, request, body):",
            "elif False:",
            "test_guard.py::test_the_body_is_what_was_signed",
        ),
        (
            "8 MiB before the signature",
            "if most is not None and sum(map(len, pieces)) > most:",
            "if False:",
            "test_guard.py::test_the_body_is_what_was_signed",
        ),
        (
            "websockets",
            'await send({"type": "websocket.close", "code": 1008})',
            "await self._app(scope, receive, send)",
            "test_guard.py::test_no_websocket_is_opened",
        ),
        (
            "the list of calls",
            "if self._sealed:",
            "if False:",
            "test_guard.py::test_a_sealed_engine_does_only_what_the_workflow_needs",
        ),
        (
            "the emulator's interface, open",
            """elif request.path.startswith("/_"):""",
            "elif False:",
            "test_guard.py::test_the_emulators_own_interface_is_closed",
        ),
        (
            "roles' calls are not root's",
            "ROOT_CALLS if claimed.key == ROOT_KEY else ROLE_CALLS",
            "ROOT_CALLS | ROLE_CALLS",
            "test_guard.py::test_a_role_does_less",
        ),
        (
            "root's calls are not roles'",
            "ROOT_CALLS if claimed.key == ROOT_KEY else ROLE_CALLS",
            "ROOT_CALLS | ROLE_CALLS",
            "test_guard.py::test_a_sealed_engine_does_only_what_the_workflow_needs",
        ),
        (
            "a call by its method and path",
            """or (request.method, request.path, dict(request.query)) != ("POST", "/", {})""",
            "",
            "test_guard.py::test_a_call_is_made_in_one_way",
        ),
        (
            "a call of its service",
            "(claimed.service, called) in (",
            '("secretsmanager" if called.startswith("secret") else "states", called) in (',
            "test_guard.py::test_a_call_is_made_in_one_way",
        ),
        (
            "the one bucket",
            """return "".join(rest) if bucket == BUCKET else None""",
            """return "".join(rest)""",
            "test_guard.py::test_a_sealed_engine_does_only_what_the_workflow_needs",
            "test_guard.py::test_a_link_does_nothing_else",
        ),
        (
            "the list of what a link does",
            "forms = LINKED if claimed.is_link else OBJECTS",
            "forms = OBJECTS",
            "test_guard.py::test_a_link_does_nothing_else",
        ),
        (
            "the parameters of an object's requests",
            "and needs <= query <= needs | may",
            "and needs <= query",
            "test_guard.py::test_a_link_does_nothing_else",
            "test_guard.py::test_a_sealed_engine_does_only_what_the_workflow_needs",
        ),
        (
            "no header of a link",
            "if claimed.is_link and not set(claimed.headers) <= LINK_HEADERS:",
            "if False:",
            "test_guard.py::test_a_link_does_nothing_else",
        ),
        (
            "what nobody signed",
            "for name in dict.fromkeys(names) if name in request.headers",
            "for name in request.headers",
            "test_guard.py::test_what_nobody_signed_is_not_handed_on",
        ),
    ),
    *_walls(
        "claude_workflow/local/signature.py",
        (
            "the sum",
            "if not hmac.compare_digest(computed, self.signature):",
            "if False:",
            "test_guard.py::test_what_was_changed_after_signing_is_refused",
            "test_guard.py::test_a_link_does_nothing_else",
        ),
        (
            "host among what is signed",
            '{"host", *(name for name',
            "{*(name for name",
            "test_guard.py::test_what_has_to_be_signed_is",
        ),
        (
            "x-amz-… among what is signed",
            '(name for name in request.headers if name.startswith("x-amz-"))',
            "()",
            "test_guard.py::test_what_has_to_be_signed_is",
            "test_guard.py::test_a_link_does_nothing_else",
        ),
        (
            "the clock of a header",
            'if abs(now - _signed_at(date, said["day"])) > SKEW:',
            'if not _signed_at(date, said["day"]):',
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        ("the day of the scope", "or not date.startswith(day)", "", "test_guard.py::test_what_has_to_be_signed_is"),
        (
            "two signatures, in a header",
            "if any(map(_signs, request.query)):",
            "if False:",
            "test_guard.py::test_what_can_be_read_in_two_ways_is_refused",
        ),
        (
            "two signatures, in a link",
            """if "authorization" in request.headers:""",
            "if False:",
            "test_guard.py::test_what_has_to_be_signed_is",
        ),
        (
            "the hash of S3's bodies",
            """if said["service"] == "s3" and not re""",
            """if False and not re""",
            "test_guard.py::test_what_has_to_be_signed_is",
        ),
        (
            "the end of a link",
            'if not since - SKEW <= now <= since + timedelta(seconds=int(request.query["X-Amz-Expires"])):',
            "if not since - SKEW <= now:",
            "test_guard.py::test_the_guard_itself_ends_a_link",
        ),
        (
            "the beginning of a link",
            "if not since - SKEW <= now <= since",
            "if not now <= since",
            "test_guard.py::test_the_guard_itself_ends_a_link",
        ),
        (
            "unknown parameters in a link",
            "or others or not scope",
            "or not scope",
            "test_guard.py::test_what_has_to_be_signed_is",
        ),
        (
            "a link of S3 alone",
            '''or not scope or scope["service"] != "s3"''',
            """or not scope""",
            "test_guard.py::test_what_has_to_be_signed_is",
        ),
    ),
    *_walls(
        "claude_workflow/local/seams.py",
        (
            "who asks for a function's events",
            'if not hmac.compare_digest(said.encode("latin-1"), own.encode()):',
            "if False:",
            "test_guard.py::test_a_functions_events_are_its_own",
        ),
        (
            "a secret for each port",
            "hmac.digest(KEY, of.encode(), ",
            "hmac.digest(KEY, b'' if of.isdigit() else of.encode(), ",
            "test_guard.py::test_a_port_is_opened_by_its_own_secret_alone",
        ),
        (
            "the key in roles' credentials",
            "given |= {name: _secret(given[name]) for name in IN_ENVIRONMENT.values()}",
            "pass",
            "test_guard.py::test_the_credentials_of_roles_cannot_be_reckoned",
        ),
    ),
    *_walls(
        "claude_workflow/local/service.py",
        ("the seal", "        started.seal()\n", "", "test_service.py::test_the_engine_of_a_service_is_sealed"),
    ),
    *_walls(
        "lambdas/agent/behind.py",
        (
            "nothing that git obeys is shown",
            ' if not GITS.intersection(path.split("/"))',
            "",
            "test_behind.py::test_what_git_obeys_is_not_shown",
        ),
        (
            "a call that waits is not made in half a session",
            "if transcript.waits or not _tells_repository(archive):",
            "if not _tells_repository(archive):",
            "test_behind.py::test_what_shows_late_lands_before_the_start_too",
        ),
        (
            "nobody looks at half a workspace",
            "read = settings.workspace_instructions or equipment.starts_programs",
            "read = equipment.starts_programs",
            "test_behind.py::test_where_the_workspace_is_looked_at_before_it_is_there_first",
        ),
    ),
    *_walls(
        "lambdas/agent/listener.py",
        (
            "no answer in half a session",
            "held=not self.proxy.restored.in_place",
            "held=False",
            "test_proxy.py::test_an_answer_waits_for_the_session",
            "test_behind.py::test_the_model_thinks_while_the_session_lands",
        ),
        (
            "the run's token",
            "if not self.proxy.accepts(self.headers):",
            "if False:",
            "test_proxy.py::test_without_the_token_nothing_is_done",
        ),
        (
            "one length of a body",
            "plain = len(lengths) == 1 and re",
            "plain = re",
            "test_proxy.py::test_a_length_that_can_be_read_in_two_ways_is_refused",
        ),
        (
            "plain digits of a length",
            r"""re.fullmatch(r"[0-9]{1,12}", lengths[0].strip())""",
            "int(lengths[0]) >= 0",
            "test_proxy.py::test_a_length_that_can_be_read_in_two_ways_is_refused",
        ),
        (
            "no chunks",
            """ if plain and "transfer-encoding" not in self.headers else None""",
            " if plain else None",
            "test_proxy.py::test_a_length_that_can_be_read_in_two_ways_is_refused",
        ),
        ("64 MiB of a body", "if size > BODY_BYTES and", "if False and", "test_proxy.py::test_bodies_wait_for_room"),
        (
            "the budget, at the proxy",
            "except LimitMet as limit:",
            "except KeyboardInterrupt as limit:",
            "test_proxy.py::test_beyond_its_budget_a_run_gets_a_403",
        ),
        (
            "403 for it",
            'self._refuse(HTTPStatus.FORBIDDEN, f"the limit of this run is met: {limit}")',
            'self._refuse(HTTPStatus.TOO_MANY_REQUESTS, f"the limit of this run is met: {limit}")',
            "test_proxy.py::test_beyond_its_budget_a_run_gets_a_403",
        ),
        (
            "what cannot be metered",
            "except Unreadable as problem:\n            return self._refuse(",
            "except Unreadable as problem:\n            return self._relay(upstream, request, None)\n            (",
            "test_proxy.py::test_what_cannot_be_metered_is_not_passed_on",
        ),
        (
            "the gate, before the meter",
            "proxy.pass_gate(call, request.body, self.connection)",
            "pass",
            "test_proxy.py::test_a_closed_gate_holds_a_request_until_the_agent_hangs_up",
        ),
        (
            "64 MiB of a body in chunks",
            "            if request.cut:\n",
            "            if False:\n",
            "test_proxy.py::test_chunks_are_read_in_one_way",
        ),
        (
            "chunks, and a length besides",
            """ and "content-length" not in self.headers""",
            "",
            "test_proxy.py::test_chunks_are_read_in_one_way",
        ),
        (
            "the way to where a repository is now",
            "self._localise(response, upstream, request.path)",
            "pass",
            "test_git.py::test_what_has_moved_is_found_by_way_of_the_proxy",
        ),
    ),
    *_walls(
        "lambdas/agent/proxy.py",
        (
            "a token of this run",
            '''self._token = f"run-{secrets.token_urlsafe(32)}"''',
            '''self._token = "run-always-the-same-token"''',
            "test_proxy.py::test_tokens_are_of_one_run",
        ),
        (
            "two bodies at a time",
            "self._changed.wait_for(lambda: size <= self._left)",
            "pass",
            "test_proxy.py::test_bodies_wait_for_room",
        ),
        (
            "a provider that refuses a later leg",
            "paid = self._paid or self.answers > 0",
            "paid = self.answers > 0",
            "test_proxy.py::test_a_closed_gate_holds_a_request_until_the_agent_hangs_up",
        ),
    ),
    *_walls(
        "lambdas/agent/upstream.py",
        (
            "the list of requests",
            "any(allowed.fullmatch(asked) for allowed in self.requests)",
            "True",
            "test_proxy.py::test_other_requests_are_refused",
        ),
        (
            "one reading of a path",
            "not self.sly.search(asked) and ",
            "",
            "test_proxy.py::test_supabase_is_one_more_upstream",
        ),
        (
            "the agent's own credentials left out",
            """*("authorization", "x-api-key", "apikey", "private-token", "cookie"),""",
            "",
            "test_proxy.py::test_the_key_replaces_the_token",
        ),
        (
            "the headers that a host may be sent",
            "if self.headers is None else header in self.headers",
            "",
            "test_git.py::test_a_pull_request_is_opened_and_nothing_else",
        ),
    ),
    *_walls(
        "lambdas/agent/body.py",
        (
            "plain sizes of chunks",
            r"""SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")""",
            r"""SIZE = re.compile(rb"\+?([0-9A-Fa-f]{1,8})[^\n]*\n")""",
            "test_proxy.py::test_chunks_are_read_in_one_way",
        ),
    ),
    *_walls(
        "lambdas/repositories.py",
        (
            "paths that lead elsewhere",
            r"(?!\.{1,2}(?:/|$))",
            "",
            "test_repositories.py::test_what_only_looks_like_one_is_none",
        ),
        (
            "TLS but on this machine",
            "'http' if LOOPBACK.fullmatch(host) else 'https'",
            "'http'",
            "test_repositories.py::test_only_this_machine_is_spoken_to_without_tls",
        ),
    ),
    *_walls(
        "lambdas/request.py",
        (
            "a repository of the deployment's",
            """any(each.has(body["repository"]["url"]) for each in caps.repositories)""",
            "True",
            "test_request.py::test_a_repository_is_one_of_the_deployments",
        ),
    ),
    *_walls(
        "lambdas/agent/push.py",
        (
            "branches that are protected",
            "if branch != ref and any(",
            "if False and any(",
            "test_push.py::test_a_push_is_let_through_by_its_names",
        ),
        (
            "branches and tags alone",
            "if not ref.startswith((BRANCHES, TAGS)):",
            "if False:",
            "test_push.py::test_a_push_is_let_through_by_its_names",
        ),
        (
            "options of a push",
            """if "push-options" in capabilities:""",
            "if False:",
            "test_push.py::test_options_an_encoding_and_too_much_are_refused",
        ),
        (
            "a push that is encoded",
            "        refuse_encoded(request.named)\n",
            "",
            "test_push.py::test_options_an_encoding_and_too_much_are_refused",
        ),
        (
            "a command that can be read",
            "if not found or len(refs) == COMMANDS:",
            "if not found:\n            continue\n        if len(refs) == COMMANDS:",
            "test_push.py::test_what_could_be_read_otherwise_is_not_read",
        ),
    ),
    *_walls(
        "lambdas/agent/git.py",
        (
            "fields of a pull request",
            "asked.keys() <= fields",
            "True",
            "test_git.py::test_a_pull_request_is_opened_and_nothing_else",
        ),
        (
            "JSON alone",
            """kinds == ["application/json"] and """,
            "",
            "test_git.py::test_a_pull_request_is_opened_and_nothing_else",
        ),
        (
            "the query of a request",
            r"/info/refs\?service={service}",
            r"/info/refs\?service=.*",
            "test_git.py::test_other_repositories_are_refused_with_a_reason",
        ),
        (
            "pushing only where it says push",
            """if found.push else ("git-upload-pack",)""",
            """if True else ("git-upload-pack",)""",
            "test_git.py::test_other_repositories_are_refused_with_a_reason",
        ),
    ),
    *_walls(
        "lambdas/agent/repository.py",
        (
            "what a clone would weigh",
            "|| exit {TOO_LARGE}",
            "|| true",
            "test_repository.py::test_a_clone_fails_by_a_name_that_helps",
        ),
        (
            "a repository that is there",
            "    exit {TAKEN}\n",
            "    rm -rf .git\n",
            "test_repository.py::test_what_is_in_the_workspace_is_not_overwritten",
        ),
    ),
    *_walls(
        "lambdas/agent/messages.py",
        (
            "a field named twice",
            "if len(made) < len(pairs):",
            "if False:",
            "test_proxy.py::test_what_cannot_be_metered_is_not_passed_on",
        ),
        (
            "no NaN in a call",
            "object_pairs_hook=_once, parse_constant=no_number)",
            "object_pairs_hook=_once, parse_constant=float)",
            "test_proxy.py::test_what_cannot_be_metered_is_not_passed_on",
        ),
        (
            "UTF-8 alone in a call",
            "json.loads(body.decode(), object",
            "json.loads(body, object",
            "test_proxy.py::test_what_cannot_be_metered_is_not_passed_on",
        ),
        (
            "an encoded call",
            """if headers.get("content-encoding", "identity") != "identity":""",
            "if False:",
            "test_proxy.py::test_what_cannot_be_metered_is_not_passed_on",
        ),
        (
            "prices that are unknown",
            "if asked.get(name) not in allowed:",
            "if False:",
            "test_proxy.py::test_what_cannot_be_metered_is_not_passed_on",
        ),
        (
            "a tool's input too deep",
            "return TOO_DEEP if too_deep(value, DEPTH - ENVELOPE) else value",
            "return value",
            "test_meter.py::test_what_no_message_can_carry_is_none",
        ),
        (
            "a tool's input beyond numbers",
            "return number if math.isfinite(number) else None",
            "return number",
            "test_meter.py::test_what_no_message_can_carry_is_none",
        ),
        (
            "a tool's input of NaN",
            "json.loads(text, parse_constant=no_number, parse_float=_or_null)",
            "json.loads(text, parse_float=_or_null)",
            "test_meter.py::test_what_no_message_can_carry_is_none",
        ),
    ),
    *_walls(
        "lambdas/agent/meter.py",
        (
            "the budget",
            "if self._reckoned + own >= self._budget:",
            "if False:",
            "test_meter.py::test_no_call_is_passed_on_once_the_budget_is_spent",
        ),
        (
            "the number of calls",
            "if self.calls >= self._most_calls:",
            "if False:",
            "test_meter.py::test_the_number_of_calls_has_an_end",
        ),
        (
            "calls side by side",
            "fits = not self._under_way or self._reckoned + under_way + own < self._budget",
            "fits = True",
            "test_meter.py::test_calls_side_by_side_wait_where_together_they_could_pass_the_budget",
        ),
        (
            "hanging up",
            "self._reckoned += reckoned",
            "self._reckoned += line.usd",
            "test_meter.py::test_hanging_up_before_the_last_event_is_not_free",
        ),
        (
            "a model without a price",
            "if not self.prices.knows(call.model):",
            "if False:",
            "test_meter.py::test_a_model_without_a_price_is_not_called",
        ),
        (
            "a strict budget",
            "own = charge.at_worst if self._strict else 0.0",
            "own = 0.0",
            "test_meter.py::test_a_strict_budget_is_passed_by_none",
        ),
        (
            "a receipt that is kept",
            "return fits and self._keeping.kept()",
            "return fits",
            "test_meter.py::test_a_call_waits_until_the_one_before_is_on_the_receipt_that_is_kept",
        ),
        (
            "every call is on the receipt",
            "self._ended.append(line)",
            "pass",
            "test_meter.py::test_no_call_is_passed_on_once_the_budget_is_spent",
        ),
    ),
    *_walls(
        "lambdas/bucket/ledger.py",
        (
            "what is reserved fits",
            "if room >= own.micros or",
            "if True or",
            "test_ledger.py::test_whatever_happens_no_limit_is_passed",
        ),
        (
            "what a lost run reserved",
            "if each.ends < now else each",
            "if False else each",
            "test_ledger.py::test_whatever_happens_no_limit_is_passed",
        ),
        (
            "failed runs of a session",
            "elif not committed:",
            "elif False:",
            "test_ledger.py::test_failed_runs_count_against_their_session_until_they_are_committed",
        ),
    ),
    *_walls(
        "lambdas/receipt.py",
        (
            "a receipt that does not add up",
            "or read.misreckoned()",
            "",
            "test_receipt.py::test_what_does_not_add_up_is_no_receipt",
        ),
        (
            "what a receipt may hold",
            "and call.usage == kept(call.usage)",
            "",
            "test_receipt.py::test_what_does_not_add_up_is_no_receipt",
        ),
    ),
    *_walls(
        "lambdas/agent/staged.py",
        (
            "what is written, not what is being written",
            "return self._kept == self._changes",
            "return True",
            "test_receipts.py::test_a_call_waits_until_what_was_before_is_written",
        ),
    ),
    *_walls(
        "lambdas/run_claude.py",
        (
            "no checkpoint of half a session",
            'raise Internal(detail="the session is not in place yet")',
            "return 0",
            "test_behind.py::test_no_checkpoint_is_taken_of_half_a_session",
        ),
        (
            "no leg without its checkpoint: the gate",
            """if leg.by == "gate":""",
            "if False:",
            "test_legs.py::test_a_leg_never_ends_without_its_checkpoint",
        ),
        (
            "no leg without its checkpoint: the limit",
            "if not leg.checkpointed:",
            "if False:",
            "test_legs.py::test_a_leg_never_ends_without_its_checkpoint",
        ),
        (
            "nobody is asked for a run that is over",
            "if over := _over(task, saver):",
            "if over := None:",
            "test_legs.py::test_a_run_that_is_over_before_its_next_leg_keeps_what_it_did",
        ),
        (
            "the last messages, before the result",
            "each.result()  # where there is a result, its messages and its receipt are the last ones",
            "pass",
            "test_legs.py::test_a_result_waits_for_its_messages",
        ),
    ),
    *_walls(
        "lambdas/persist_session.py",
        (
            "a result costs what its receipt says",
            "abs(kept.usd - result.cost_usd) > 1e-9:",
            "abs(kept.usd - result.cost_usd) > 1e9:",
            "test_persist_session.py::test_a_result_costs_what_its_receipt_adds_up_to",
        ),
    ),
    *_walls(
        "lambdas/restore_session.py",
        (
            "a lost run counts against its session",
            "if lost and lost.run_id != claim.run_id:",
            "if False:",
            "test_restore_session.py::test_a_sessions_lost_runs_count_against_its_limit",
        ),
    ),
    *_walls(
        "lambdas/agent/witness.py",
        (
            "what the model said",
            "return None if None in said else frame",
            "return frame if None in said else frame",
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "whose calls results are of",
            "return frame if self._called(frame) else None",
            "return frame",
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "the end after the last answer",
            """if last is None or not last.whole or (last.stop_reason == "tool_use" and not last.calls(OUTPUT)):""",
            "if last is None:",
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "a limit that was met: turns",
            '"error_max_turns": self._meter.turns_met,',
            '"error_max_turns": True,',
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "a limit that was met: budget",
            '"error_max_budget_usd": self._meter.budget_met,',
            '"error_max_budget_usd": True,',
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "an error of the provider's",
            """"success": self.failed or self._meter.limit is not None or frame.get("api_error_status") is None,""",
            '"success": True,',
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "the text of an end",
            """return frame | {"result": text}""",
            "return frame",
            "test_meter.py::test_the_text_of_an_end_is_the_models",
        ),
        (
            "a result of a result's shape",
            "if not _is_result(frame):",
            "if False:",
            "test_meter.py::test_what_nobody_said_is_passed_over",
        ),
        (
            "a tool's input as it was said",
            """return None if each.get("input") is TOO_DEEP else each""",
            "return block",
            "test_meter.py::test_what_the_model_said_is_believed",
        ),
    ),
    *_walls(
        "lambdas/agent/transcript.py",
        (
            "no link in place of the transcript",
            "found = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)",
            "found = os.open(name, flags | os.O_NONBLOCK, dir_fd=folder)",
            "test_claude.py::test_a_link_in_place_of_the_transcript_is_none",
        ),
        (
            "no link in place of its directory",
            "folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)",
            "folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)",
            "test_claude.py::test_a_link_in_place_of_the_transcript_is_none",
        ),
        (
            "files alone as transcript",
            "if stat.S_ISREG(seen.st_mode) and seen.st_size:",
            "if seen.st_size or True:",
            "test_claude.py::test_a_transcript_that_is_no_file_holds_nothing_up",
        ),
    ),
    *_walls(
        "lambdas/agent/claude.py",
        (
            "what is printed is held against it",
            "message = self._witness.believed(frame)",
            "message = frame",
            "test_claude.py::test_a_forged_result_is_passed_over_and_the_real_one_waited_for",
        ),
        (
            "strict JSON of what is printed",
            "frame = strict.read(line)",
            "frame = json.loads(line)",
            "test_claude.py::test_a_forged_result_is_passed_over_and_the_real_one_waited_for",
        ),
    ),
    *_walls(
        "lambdas/agent/outcome.py",
        (
            "a leg that got nothing done",
            "if not given and not (self.cut and by in ENDERS):",
            "if False:",
            "test_legs.py::test_a_leg_without_an_answer_is_none",
        ),
        (
            "a run that ends before its session is in place",
            "self.proxy.meter, self.proxy.answers and self.proxy.restored.in_place",
            "self.proxy.meter, self.proxy.answers",
            "test_behind.py::test_who_ends_a_run_meanwhile_leaves_nothing_half",
        ),
        (
            "a session that could not be restored",
            "raise failure.but(cost_usd=self.proxy.meter.spent) from failure",
            "pass",
            "test_behind.py::test_what_does_not_land_fails_by_its_name",
        ),
        (
            "a run that is cancelled before its first answer",
            'RunCancelled if by == "cancelled" else late',
            "late",
            "test_legs.py::test_a_run_that_is_cancelled_before_its_first_answer_is_none",
        ),
        (
            "what an earlier leg has done",
            "and not (self.cut and by in ENDERS):",
            ":",
            "test_legs.py::test_a_later_leg_that_is_cancelled_before_its_first_answer_keeps_what_was_done",
        ),
        (
            "the schema, before the commit",
            "fitting = [each for each in outputs if each is not TOO_DEEP and fits(each, self.schema)]",
            "fitting = [each for each in outputs if each is not TOO_DEEP]",
            "test_claude.py::test_an_output_that_claude_code_never_checked_is_held_against_the_schema",
        ),
        (
            "the meter's cost",
            "return self.receipt.usd",
            "return self.receipt.claude_code_usd or 0.0",
            "test_receipts.py::test_the_agent_cannot_change_what_it_cost",
        ),
        (
            "the cost of a run whose agent died",
            "return kind(retry_after=retry_after, cost_usd=self.proxy.meter.spent, detail=detail)",
            "return kind(retry_after=retry_after, detail=detail)",
            "test_claude.py::test_the_cli_dies",
        ),
        (
            "the cap that is met ends the run as such",
            "if limit := self.proxy.meter.limit:",
            "if limit := None:",
            "test_claude.py::test_what_the_agents_code_asks_the_model_itself_is_within_the_budget",
        ),
    ),
    *_walls(
        "lambdas/agent/gate.py",
        (
            "the next step of the conversation",
            "if self._closed and self._began:",
            "if False:",
            "test_gate.py::test_the_next_step_is_held_back",
        ),
        (
            "who asks in the middle of a tool",
            "if not call.main or not all(each.encode() in body for each in self.owed):",
            "if not call.main:",
            "test_gate.py::test_who_asks_in_the_middle_of_a_tool_is_not",
        ),
        (
            "whose calls the next step brings the results of",
            "if answer.call is self._step:",
            "if True:",
            "test_gate.py::test_who_asks_in_the_middle_of_a_tool_is_not",
        ),
    ),
    *_walls(
        "lambdas/agent/ending.py",
        (
            "a cancel",
            'watches = {asyncio.create_task(self._cancelled()): "cancelled"}',
            "watches = {}",
            "test_legs.py::test_a_cancelled_run_is_complete",
        ),
        (
            "a deadline that many files bring forward",
            "if crowded(self.root, TAIL_FILES + int((self.last - began) / FILE_SECONDS)):",
            "if False:",
            "test_claude.py::test_many_files_bring_the_deadline_forward",
        ),
    ),
    *_walls(
        "lambdas/strict.py",
        (
            "no NaN",
            "value = json.loads(text, parse_constant=no_number, parse_float=_finite)",
            "value = json.loads(text, parse_float=_finite)",
            "test_strict.py",
        ),
        (
            "no infinite number",
            "value = json.loads(text, parse_constant=no_number, parse_float=_finite)",
            "value = json.loads(text, parse_constant=no_number)",
            "test_strict.py",
        ),
        ("a depth", "if too_deep(value, depth):", "if False:", "test_strict.py"),
        (
            "no NaN is written",
            "return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()",
            "return json.dumps(value, ensure_ascii=False).encode()",
            "test_strict.py",
        ),
        ("half a pair is escaped", "return json.dumps(value, allow_nan=False).encode()", "raise", "test_strict.py"),
        (
            "half a pair is replaced",
            """return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))""",
            "return value",
            "test_strict.py",
        ),
    ),
    *_walls(
        "lambdas/agent/scratch.py",
        (
            "what lands is where the agent is not",
            'self.landing = root / "landing"',
            'self.landing = self.tmp / "landing"',
            "test_hostile.py::test_others_files_are_neither_read_nor_changed",
        ),
        (
            "links are not followed by a wipe",
            "if entry.is_dir(follow_symlinks=False):\n                os.chmod",
            "if entry.is_dir():\n                os.chmod",
            "test_scratch.py::test_wiping_hostile_trees",
        ),
        (
            "modes that forbid a wipe",
            "os.chmod(entry.name, 0o700, dir_fd=directory)\n",
            "pass\n",
            "test_scratch.py::test_wiping_what_was_closed_to_its_owner",
        ),
        (
            "any depth of a wipe",
            "os.rename(below, moved, src_dir_fd=directory, dst_dir_fd=top)\n                waiting.append(moved)",
            'waiting.append(f"{name}/{below}")',
            "test_scratch.py::test_wiping_hostile_trees",
        ),
        (
            "what a killed run left",
            "_empty_aside(shelf / name) if gone else _take_away(shelf / name)",
            "pass",
            "test_scratch.py::test_a_directory_that_its_run_left_is_swept",
        ),
        (
            "a run that goes on is not swept",
            "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "pass",
            "test_scratch.py::test_a_directory_that_its_run_left_is_swept",
        ),
        (
            "what still runs of it",
            "    kill_left(root)\n",
            "    pass\n",
            "test_scratch.py::test_what_runs_on_of_a_run_that_was_killed_is_killed_before_it_is_swept",
        ),
        (
            "deep trees are counted",
            "way += within",
            "pass",
            "test_scratch.py::test_a_tree_is_counted_however_deep_it_is",
        ),
        (
            "what cannot be looked into counts",
            "return _unseen(name, above), []",
            "return 0, []",
            "test_scratch.py::test_what_cannot_be_looked_into_counts_for_many",
        ),
        (
            "another's files stay",
            "if path.lstat().st_uid == os.geteuid():",
            "if True:",
            "test_sandbox.py::test_what_is_anothers_is_not_swept",
        ),
        (
            "sweeping before a run",
            "    try:\n        _sweep(directories)\n        yield",
            "    try:\n        yield",
            "test_sandbox.py::test_what_is_swept_is_empty_before_and_after",
        ),
        (
            "sweeping after a run",
            "    finally:\n        _sweep(directories)",
            "    finally:\n        pass",
            "test_sandbox.py::test_what_is_swept_is_empty_before_and_after",
        ),
    ),
    *_walls(
        "lambdas/agent/processes.py",
        (
            "adoption of daemons",
            "_prctl(PR_SET_CHILD_SUBREAPER, 1)",
            "pass",
            "test_processes.py::test_daemons_are_dead_afterwards",
        ),
        (
            "all of a user's at once",
            "                self._kill_at_once()\n",
            "                pass\n",
            "test_processes.py::test_chains_that_outrun_the_search_end_all_the_same",
        ),
        (
            "a handler that is not dumpable",
            "_prctl(PR_SET_DUMPABLE, 0)",
            "pass",
            "test_processes.py::test_a_sealed_process_is_not_dumpable",
        ),
    ),
    *_walls(
        "lambdas/agent/environment.py",
        (
            "an environment that is built",
            "return places | root | SWITCHES",
            "return dict(os.environ) | places | root | SWITCHES",
            "test_scratch.py::test_environment_is_built",
        ),
        (
            "no credential in the agent's",
            "if found:\n        raise CarelessDeployment",
            "if False:\n        raise CarelessDeployment",
            "test_sandbox.py::test_a_credential_in_the_agents_environment_stops_the_run",
        ),
        (
            "no credential in the function's",
            """if found := [name for name in found if name not in ("ANTHROPIC_BASE_URL", "SECRET_ARN")]:""",
            "if found := []:",
            "test_sandbox.py::test_a_credential_in_the_functions_environment_stops_every_run",
        ),
    ),
    *_walls(
        "lambdas/agent/launch.py",
        (
            "files of others",
            "files = CHANGE | (IOCTL_DEV if abi >= ABI_IOCTL else 0)",
            "pass",
            "test_hostile.py::test_others_files_are_neither_read_nor_changed",
        ),
        (
            "ports of the machine",
            "ports = _closed_ports(orders) if abi >= ABI_TCP else 0",
            "ports = 0",
            "test_network.py::test_in_a_shared_network_the_proxy_alone_is_reached",
        ),
        (
            "a network of its own",
            "        leave_the_network()\n        if",
            "        if",
            "test_network.py::test_nothing_is_reached_from_a_network_of_its_own",
        ),
        (
            "no UDP in a shared network",
            'of_ip = TCP if network == "shared" else TCP | UDP',
            "of_ip = TCP | UDP",
            "test_network.py::test_in_a_shared_network_the_proxy_alone_is_reached",
        ),
        (
            "pairs of sockets that lead to each other alone",
            'program += _only_for(number["socketpair"], _types(dict.fromkeys(CONNECTED, (0,))))',
            "pass",
            "test_network.py::test_nothing_is_reached_from_a_network_of_its_own",
        ),
        (
            "signals, and abstract sockets",
            "scoped = ABSTRACT_SOCKETS_AND_SIGNALS if abi >= ABI_SCOPE else 0",
            "scoped = 0",
            "test_hostile.py::test_no_other_process_can_be_ended",
            "test_hostile.py::test_services_on_the_machine_are_not_reached",
        ),
        (
            "modes and times of others' files",
            '_close_the_rest(orders["write"])',
            "pass",
            "test_hostile.py::test_not_even_their_modes_are",
        ),
        (
            "nobody listens",
            'program += _only_for(number["listen"], _refuse(errno.EACCES)) + _no_sharing',
            "program += _no_sharing",
            "test_network.py::test_nobody_is_served_by_the_agent_where_others_are",
        ),
        (
            "TCP and UDP only",
            'program += _only_for(number["socket"], _argument(0) + _cases(families) + _refuse(errno.EAFNOSUPPORT))',
            "pass",
            "test_hostile.py::test_tcp_and_udp_are_all_that_it_can_speak",
        ),
        (
            "no shared address",
            ' + _no_sharing(number["setsockopt"])',
            "",
            "test_network.py::test_nobody_is_served_by_the_agent_where_others_are",
        ),
        (
            "what the kernel would keep",
            'for name in [*OUTLIVING, "io_uring_setup"] if families else OUTLIVING:',
            "for name in ():",
            "test_hostile.py::test_the_kernel_keeps_nothing_of_a_run",
        ),
        (
            "limits and priorities of others",
            "program += _only_on_itself(number[name], zeros)",
            "pass",
            "test_hostile.py::test_no_other_process_is_held_back",
        ),
    ),
    *_walls(
        "lambdas/run_claude.py",
        (
            "the agent's own network on AWS",
            'return replace(settings, agent_network="own" if network.available() else "shared")',
            'return replace(settings, agent_network="open")',
            "test_network.py::test_on_aws_it_is_tried_and_on_one_machine_told",
        ),
    ),
    *_walls(
        "lambdas/agent/network.py",
        (
            "a listener is taken once",
            "os.unlink(launch.HANDOFF, dir_fd=self._folder)\n                        self.close()",
            "pass",
            "test_network.py::test_a_listener_is_taken_once",
        ),
        (
            "who hands a listener over",
            "if user != os.geteuid():",
            "if False:",
            "test_network.py::test_another_user_hands_over_nothing",
        ),
    ),
    *_walls(
        "lambdas/settings.py",
        (
            "directories are emptied on Lambda alone",
            'wiped=ALONE if environ.get(STARTED) in ("on-demand", PROVISIONED) else (),',
            "wiped=ALONE,",
            "test_settings.py::test_no_directory_is_emptied_but_on_lambda",
        ),
    ),
    *_walls(
        "lambdas/request.py",
        ("240 KiB, at RestoreSession", "if _bytes(body) > BODY_BYTES:", "if False:", "test_request.py"),
        (
            "half of a pair, and no numbers",
            "return len(json.dumps(body, ensure_ascii=False, allow_nan=False).encode())",
            "return len(json.dumps(body))",
            "test_request.py",
        ),
        (
            "caps of the deployment",
            "if name in body and cap is not None and body[name] > cap:",
            "if False:",
            "test_request.py",
        ),
        ("fields that are unknown", "if name not in FIELDS:", "if False:", "test_request.py"),
        ("the deployment's tools", "if not covers(caps.allowed_tools, tool):", "if False:", "test_request.py"),
    ),
    *_walls(
        "lambdas/agent/mcp.py",
        (
            "an MCP server's tools, at the proxy",
            "return None if allowed.tool(server, name) else",
            "return None if True else",
            "test_mcp.py::test_what_is_not_allowed_is_refused_whoever_asks",
        ),
        (
            "MCP bodies that can be read in two ways",
            "if any(name.casefold() in names and name not in names for name in named):",
            "if False:",
            "test_mcp.py::test_what_is_not_allowed_is_refused_whoever_asks",
        ),
        (
            "an MCP server of which nothing is allowed",
            "return named and whole not in self.never",
            "return True",
            "test_mcp.py::test_of_a_server_that_is_not_allowed_there_is_nothing",
        ),
    ),
    *_walls(
        "lambdas/agent/approvals.py",
        (
            "an approval is of one call",
            "if verdict is None or verdict.digest != digest(name, tool, given):",
            "if verdict is None:",
            "test_approvals.py::test_a_mark_that_cannot_be_written_allows_nothing",
        ),
        (
            "an approved call is made once",
            "if not self.take():",
            "if self.take() and False:",
            "test_approvals.py::test_what_waits_is_answered_by_the_next_post_and_made_by_one_run",
        ),
        (
            "an approval, one call at a time",
            """return self._defer(tool, given, name) if _alone(name, witness) else ("deny", ALONE)""",
            "return self._defer(tool, given, name)",
            "test_approvals.py::test_two_at_once_are_asked_for_one_by_one",
        ),
        (
            "an approved call passes the proxy once",
            "                return False\n            self._granted.remove(words)",
            "                return False",
            "test_mcp.py::test_a_call_that_is_asked_for_passes_once_it_is_approved_and_once_only",
        ),
        (
            "an approved push passes the proxy once",
            "            if pushes:",
            "            if False:",
            "test_push.py::test_a_push_waits_for_an_approval_of_its_own",
        ),
    ),
    *_walls(
        "lambdas/agent/equipment.py",
        (
            "secrets in a stdio server's environment",
            "if found := sorted(variable for variable in env if CREDENTIAL.fullmatch(variable)):",
            "if found := []:",
            "test_equipment.py::test_an_entry_that_cannot_be_used_is_named",
        ),
        (
            "the model's key, lent to an MCP server",
            "if secret in OURS:",
            "if False:",
            "test_equipment.py::test_an_entry_that_cannot_be_used_is_named",
        ),
    ),
    *_walls(
        "lambdas/agent/claude.py",
        (
            "an MCP server's tools, to the model",
            "if denied := mcp.denied(servers, status, self._turn.allowed):",
            "if denied := []:",
            "test_equipment.py::test_what_is_not_allowed_of_a_server_does_not_exist",
        ),
        (
            "an approval, where the hook cannot say",
            """permission_mode="dontAsk" if proxy.approvals else "bypassPermissions",""",
            """permission_mode="bypassPermissions",""",
            "test_approvals.py::test_a_hook_that_does_not_answer_allows_nothing",
        ),
        (
            "a required MCP server",
            "if missing := mcp.down(servers, status):",
            "if missing := []:",
            "test_equipment.py::test_a_server_that_is_required_and_not_there_fails_the_run",
        ),
        (
            "the deployment's instructions, to subagents",
            """extra |= _appended(scratch, "append-subagent-system-prompt-file", instructions)""",
            "pass",
            "test_equipment.py::test_all_of_it_is_at_work_in_every_turn_and_nothing_of_the_workspaces",
        ),
        (
            "a workspace's own plugins, settings and memory",
            "setting_sources=[],  # settings and hooks in the workspace are the agent's own writing",
            """setting_sources=["project", "user", "local"],""",
            "test_equipment.py::test_all_of_it_is_at_work_in_every_turn_and_nothing_of_the_workspaces",
        ),
    ),
    *_walls(
        "lambdas/restore_session.py",
        (
            "an approval of what does not wait",
            """if not pending or pending["digest"] != request.judged:""",
            "if False:",
            "test_approvals.py::test_what_waits_is_answered_by_the_next_post_and_made_by_one_run",
        ),
    ),
    *_walls(
        "lambdas/contract.py",
        (
            "a stranger's result of our shape",
            "if wrong := [name for name, sane in _SANE.items() if name in data and not sane(data[name])]:",
            "if wrong := []:",
            "test_contract.py::test_a_staged_result_of_another_shape_is_refused",
        ),
        (
            "a stranger's cost is no NaN or fortune",
            "and 0 <= value < 1e6",
            "",
            "test_contract.py::test_a_staged_result_of_another_shape_is_refused",
        ),
        (
            "a stranger's fields are ours",
            "if not isinstance(data, dict) or set(data) != {field.name for field in fields(kind)}:",
            "if not isinstance(data, dict):",
            "test_persist_session.py::test_what_is_no_result_of_run_claudes_is_passed_over",
            "test_bucket.py::test_a_staged_result_of_any_other_shape_is_the_agents_failure",
        ),
    ),
    *_walls(
        "lambdas/record_failure.py",
        (
            "RunClaude's sentences",
            'if state == "RunClaude":',
            "if False:",
            "test_record_failure.py::test_of_what_runclaude_says_only_class_and_numbers_are_believed",
        ),
        (
            "RunClaude's costs",
            "cost_usd=None,  # its receipt says it",
            'cost_usd=facts.get("cost_usd"),',
            "test_record_failure.py::test_what_runclaude_says_that_it_cost_is_no_evidence",
        ),
        (
            "RunClaude's times",
            "return value if isinstance(value, int) and 0 < value <= 3600 else None",
            "return value",
            "test_record_failure.py::test_of_what_runclaude_says_only_class_and_numbers_are_believed",
        ),
    ),
    *_walls(
        "lambdas/bucket/versions.py",
        (
            "the owner",
            """if head is None or head["Metadata"].get("owner", owner) != owner:""",
            "if head is None:",
            "test_bucket.py::test_a_session_is_found_by_its_owner_alone",
        ),
    ),
    *_walls(
        "lambdas/bucket/grants.py",
        (
            "the pinned version in a grant",
            "session=_get(bucket, session_key(base.session_id), seconds, VersionId=base.version_id) if base else None,",
            "session=_get(bucket, session_key(base.session_id), seconds) if base else None,",
            "test_bucket.py::test_a_grant_reads_the_pinned_version",
        ),
        (
            "an attempt starts once",
            '_put(bucket, f"{at}started", seconds, IfNoneMatch="*")',
            """_put(bucket, f"{at}started", seconds)""",
            "test_bucket.py::test_an_attempt_starts_once",
        ),
    ),
    *_walls(
        "lambdas/bucket/lease.py",
        (
            "the lease",
            "raise busy(retry_after=wait, session_id=session_id, run_id=wanted.run_id)",
            "return None",
            "test_bucket.py::test_a_lease_keeps_others_out_and_says_when_to_come_again",
        ),
        (
            "a lease that another has taken over",
            "bucket.delete(_key(session_id), IfMatch=held[1])",
            "bucket.delete(_key(session_id))",
            "test_bucket.py::test_a_lease_that_was_taken_over_since_it_was_seen_is_not_freed",
        ),
    ),
    *_walls(
        "lambdas/restore_session.py",
        (
            "an upload where a checkpoint is",
            "uploaded = uploads.taken(request) if checkpoint is None else None",
            "uploaded = uploads.taken(request)",
            "test_uploads.py::test_a_checkpoint_has_what_was_brought",
        ),
        (
            "a grant's end",
            "grants=grants(self.bucket, claim, checkpoint, seconds, uploaded",
            "grants=grants(self.bucket, claim, checkpoint, 3600, uploaded",
            "test_logs.py::test_grants_live_no_longer_than_the_run_may",
        ),
    ),
    *_walls(
        "lambdas/agent/unpacker.py",
        (
            "an upload's absolute path",
            """if path.startswith(b"/"):""",
            """if False:""",
            "test_materials.py::test_the_hostile_corpus_writes_nothing_outside",
        ),
        (
            "an upload's path that leads out",
            """if b".." in parts:""",
            """if False:""",
            "test_materials.py::test_the_hostile_corpus_writes_nothing_outside",
        ),
        (
            "links below which an upload lies",
            "FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
            "FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
            "test_materials.py::test_nothing_goes_through_the_links_of_a_session",
        ),
        (
            "what an upload weighs",
            "if self.bytes < 0:",
            "if False:",
            "test_materials.py::test_what_cannot_be_taken_is_refused_by_name[a bundle of many bytes]",
        ),
        (
            "how many files an upload has",
            "if self.members < 0:",
            "if False:",
            "test_materials.py::test_what_cannot_be_taken_is_refused_by_name[too many files]",
        ),
        (
            "how long a tar's header is",
            "entry.size > HEADER_BYTES",
            "False",
            "test_materials.py::test_what_cannot_be_taken_is_refused_by_name[a header of 2 GiB]",
        ),
        (
            "a tar that is damaged in the middle",
            "        except ENDS:",
            "        except HeaderError:",
            "test_materials.py::test_what_cannot_be_taken_is_refused_by_name[a header that is none]",
        ),
        (
            "the unpacker's memory",
            "resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))",
            "pass",
            "test_materials.py::test_the_program_has_no_rights_and_a_limit_of_memory",
        ),
        (
            "what the agent's git would run for a bundle",
            """    "GIT_CONFIG_GLOBAL": os.devnull,\n""",
            "",
            "test_materials.py::test_a_bundle_runs_nothing",
        ),
    ),
    *_walls(
        "lambdas/agent/launch.py",
        (
            "the unpacker's capabilities",
            """_call("capset", None, struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24))""",
            """pass""",
            "test_materials.py::test_the_program_has_no_rights_and_a_limit_of_memory",
        ),
    ),
    *_walls(
        "lambdas/bucket/uploads.py",
        (
            "whose an upload is",
            """ or offered["owner"] != request.caller""",
            "",
            "test_uploads.py::test_an_upload_that_is_not_there_is_not_found",
        ),
        (
            "that an upload is for one run",
            """if used["run_id"] not in _line(bucket, request):""",
            "if False:",
            "test_uploads.py::test_an_upload_is_for_one_run",
        ),
    ),
    *_walls(
        "lambdas/bucket/grants.py",
        (
            "an upload's size",
            """"ContentLength": size, """,
            "",
            "test_uploads.py::test_an_offer_leads_to_one_upload_of_its_size",
        ),
        (
            "an upload over another",
            """"ContentLength": size, "IfNoneMatch": "*"}""",
            """"ContentLength": size}""",
            "test_uploads.py::test_an_offer_leads_to_one_upload_of_its_size",
        ),
    ),
    *_walls(
        "lambdas/bucket/commit.py",
        (
            "what was returned is what was staged",
            "if begun.metadata != metadata:",
            "if False:",
            "test_persist_session.py::test_what_run_claude_returned_has_to_be_what_it_staged",
            "test_commit.py::test_what_was_begun_as_another_is_not_committed",
        ),
        (
            "what is said of the archive is true",
            "if result.session_files != merged.files or not",
            "if False and not",
            "test_commit.py::test_a_run_that_lies_about_its_session_is_refused",
        ),
        (
            "a commit on the pinned version alone",
            'return {"IfMatch": claim.base.etag} if claim.base and same else {"IfNoneMatch": "*"}',
            "return {}",
            "test_bucket.py::test_a_second_writer_from_the_same_version_is_refused",
        ),
    ),
    *_walls(
        "lambdas/archive/merge.py",
        (
            "staged members in their order",
            """raise damaged(f"{shown(member.path)}: it does not lie behind the member before it")""",
            "pass",
            "test_commit.py::test_hostile_changes_are_refused",
        ),
        (
            "nothing between staged members",
            """raise damaged("bytes lie between the last member and the directory")""",
            "pass",
            "test_commit.py::test_hostile_changes_are_refused",
        ),
        (
            "no staged bomb",
            """raise damaged(f"{shown(member.path)}: it inflates more than {limits.ratio}-fold")""",
            "pass",
            "test_commit.py::test_hostile_changes_are_refused",
        ),
        (
            "staged names and places",
            """raise damaged(f"{shown(member.path)}: {reason}")""",
            "pass",
            "test_commit.py::test_hostile_changes_are_refused",
        ),
    ),
    *_walls(
        "lambdas/archive/format.py",
        (
            "names that lead outside",
            """if "\\0" in path or not _NAMELESS.isdisjoint(parts):""",
            "if False:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
        (
            "the two roots",
            "if parts[0] not in ROOTS:",
            "if False:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
        (
            "no special file, no set-id",
            "if not known or central_record(member) != raw:",
            "if False:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
    ),
    *_walls(
        "lambdas/archive/unpack.py",
        (
            "members that overlap",
            "if member.offset < end or (end := directory.ends[number]) > directory.at:",
            "if (end := directory.ends[number]) < 0:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
        (
            "links and files as directories",
            """if member.path.rpartition("/")[0] not in self._places:""",
            "if False:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
        (
            "bombs",
            "if limits.inflated(directory.size, directory.compressed):",
            "if False:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
    ),
    *_walls(
        "lambdas/archive/landing.py",
        (
            "no link in a place",
            "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
            "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
            "test_landing.py::test_who_has_begun_tricks_nobody",
        ),
        (
            "what git obeys comes last",
            "for name in sorted(os.listdir(landed), key=_rank):",
            "for name in sorted(os.listdir(landed)):",
            "test_landing.py::test_what_git_obeys_comes_last",
        ),
    ),
    *_walls(
        "lambdas/archive/inflate.py",
        (
            "size and checksum",
            "if size != member.size or crc != member.crc:",
            "if False:",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
    ),
    *_walls(
        "lambdas/archive/directory.py",
        (
            "a name is its own alone",
            "return number if is_there and self.member(number).path == path else None",
            "return number if is_there else None",
            "test_contents.py::test_every_file_is_found_by_its_own_name_alone",
            "test_behind.py::test_what_a_transcript_names_may_be_anything",
        ),
        (
            "the checksum of a directory",
            """raise damaged("the directory is not what the end record says")""",
            "pass",
            "test_archive.py::test_a_forged_directory_does_no_harm",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
        (
            "a path twice",
            """raise damaged(f"{shown(parsed(raw[start:position]).path)}: it is there twice, or out of order")""",
            "pass",
            "test_archive.py::test_hostile_archives_are_refused",
        ),
    ),
    *_walls(
        "claude_workflow/local/mapping.py",
        (
            "numbers that are none",
            "return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole_number)",
            "return json.loads(text)",
            "test_gateway.py::test_a_body_that_only_some_parsers_take_is_refused",
        ),
    ),
    *_walls(
        "claude_workflow/local/gateway.py",
        (
            "the key",
            "        if name is None:\n",
            "        name = name or next(iter(self._keys.values()))\n        if name is None:\n",
            "test_gateway.py::test_without_its_key_the_api_starts_nothing",
        ),
        (
            "UTF-8",
            "jsonschema.validate(parsed(body.decode()), schema)",
            'jsonschema.validate(parsed(body.decode(errors="replace")), schema)',
            "test_gateway.py::test_a_body_that_only_some_parsers_take_is_refused",
        ),
        (
            "strangers make room",
            "if len(self._waiting) > STRANGERS:",
            "if False:",
            "test_gateway.py::test_strangers_do_not_crowd_out_who_has_a_key",
        ),
        (
            "callers are no strangers",
            "        if not self._known:\n",
            "        if True:\n",
            "test_gateway.py::test_strangers_do_not_crowd_out_who_has_a_key",
        ),
        (
            "no body before the key",
            "        if method.needs_key:\n",
            "        request.read()\n        if method.needs_key:\n",
            "test_gateway.py::test_a_body_is_read_when_its_sender_is_known",
        ),
        (
            "who left the line is not run",
            "            if request.has_left():\n",
            "            if False:\n",
            "test_gateway.py::test_who_waits_for_a_seat_has_all_its_time_and_who_hangs_up_costs_nothing",
        ),
        (
            "who goes on after its answer keeps its seat",
            "            seat.kept = response.status == ACCEPTED\n",
            "",
            "test_gateway.py::test_the_end_of_the_service_reaches_who_waits_for_a_seat",
        ),
        (
            "all its time for who waited",
            "                context |= _now()\n",
            "                pass\n",
            "test_gateway.py::test_who_waits_for_a_seat_has_all_its_time_and_who_hangs_up_costs_nothing",
        ),
    ),
    *_walls(
        "claude_workflow/local/admission.py",
        (
            "no more agents than seats",
            "len(self._taken) < self._seats",
            "True",
            "test_admission.py::test_seats_are_given_in_the_order_of_coming",
        ),
        (
            "the order of the line",
            "self._line[0] is seat and ",
            "",
            "test_admission.py::test_seats_are_given_in_the_order_of_coming",
        ),
        (
            "a seat for each that goes on",
            "                if not seat.kept:\n",
            "                if True:\n",
            "test_admission.py::test_a_run_that_goes_on_keeps_its_seat_after_its_answer",
        ),
        (
            "an end to the line",
            "if self._expected() > PATIENCE_SECONDS:",
            "if False:",
            "test_admission.py::test_who_would_wait_too_long_is_sent_back_at_once",
            "test_gateway.py::test_who_would_wait_too_long_for_a_seat_is_told_when_to_come_again",
        ),
    ),
    *_walls(
        "claude_workflow/local/http1.py",
        (
            "a header once",
            "if name.lower() in known and name.lower() in ONCE:",
            "if False:",
            "test_gateway.py::test_what_is_no_http_gets_the_same_shape_and_does_no_harm",
        ),
        (
            "a length or chunks",
            """if length is not None or coding.lower() != "chunked" or not newest:""",
            "if False:",
            "test_gateway.py::test_what_is_no_http_gets_the_same_shape_and_does_no_harm",
        ),
        (
            "digits of a length",
            r"""if not re.fullmatch(r"[0-9]+", length := length if length is not None else "0"):""",
            """if not (length := length if length is not None else "0").isdigit() and False:""",
            "test_gateway.py::test_what_is_no_http_gets_the_same_shape_and_does_no_harm",
        ),
        (
            "lines as they end",
            r"""if b"\n" in self._ahead.replace(b"\r\n", b""):""",
            "if False:",
            "test_gateway.py::test_what_is_no_http_gets_the_same_shape_and_does_no_harm",
        ),
    ),
    *_walls(
        "stacks/templates/request.vtl",
        (
            "a large body stays",
            "#if($input.body.length() > @MAX_BODY@)",
            "#if($input.body.length() > 100000000)",
            "test_gateway.py::test_a_body_over_240_kib_does_not_travel",
        ),
        (
            "half of a pair",
            r"""#if($body.matches("(?s).*[\uD800-\uDFFF].*"))""",
            "#if(false)",
            "test_gateway.py::test_half_a_surrogate_pair_does_not_travel",
        ),
        (
            "a header's quotes",
            "## Twice: the key is a text inside a text, as the preference is.\n"
            '#set($key = $util.escapeJavaScript($key).replaceAll("\\\\\'", "\'"))\n',
            "",
            "test_gateway.py::test_a_header_cannot_write_into_the_envelope",
        ),
        (
            "a preference's quotes",
            """#set($prefer = $util.escapeJavaScript($prefer).replaceAll("\\\\'", "'"))\n""" * 2,
            """#set($prefer = $util.escapeJavaScript($prefer).replaceAll("\\\\'", "'"))\n""",
            "test_gateway.py::test_a_header_cannot_write_into_the_envelope",
        ),
    ),
    *_walls(
        "stacks/templates/answer.vtl",
        (
            "causes of others",
            '#if($outcome == "FAILED" && $statuses.get($code))',
            '#if($outcome == "FAILED")\n#set($status = 500)\n#end\n#if($outcome == "FAILED" && $statuses.get($code))',
            "test_gateway.py::test_an_unknown_cause_never_leaks",
        ),
    ),
    *_walls(
        "lambdas/bucket/following.py",
        (
            "whose a run is",
            'if found is None or found["owner"] != owner:',
            "if found is None:",
            "test_read_run.py::test_a_run_of_another_caller_is_not_found",
        ),
        (
            "what is no run's name",
            "if RUN_ID.fullmatch(run_id) else None",
            "if run_id else None",
            "test_read_run.py::test_a_name_that_is_no_runs_is_not_looked_for",
        ),
        (
            "what of a failure is its operator's",
            "return {name: failure[name] for name in PUBLIC if name in failure}",
            "return dict(failure)",
            "test_read_run.py::test_a_run_that_failed_is_answered_as_its_post_was",
        ),
        (
            "a line end in a message",
            'return message.replace(b"\\r", b" ") if',
            "return message if",
            "test_stream_run.py::test_what_a_stranger_staged_breaks_no_stream",
        ),
    ),
    *_walls(
        "lambdas/read_session.py",
        (
            "a version is its own owner's",
            'if told is None or told[1]["owner"] != asked.caller:',
            "if told is None:",
            "test_read_session.py::test_a_version_is_its_own_owners",
        ),
        (
            "a path is read in one way",
            """or "%" in re.sub("%[0-9A-Fa-f]{2}", "", raw):""",
            "or False:",
            "test_read_session.py::test_a_path_is_read_in_one_way",
        ),
        (
            "no browser shows a file",
            """    "Content-Type": CONTENT_TYPE,
""",
            """    "Content-Type": "text/html",
""",
            "test_read_session.py::test_a_file_comes_as_it_is_and_harms_nobody",
        ),
    ),
    *_walls(
        "lambdas/bucket/versions.py",
        (
            "a session's versions are its owner's",
            'if head is None or head["Metadata"].get("owner") != owner:',
            "if head is None:",
            "test_read_session.py::test_a_version_is_its_own_owners",
        ),
    ),
    *_walls(
        "lambdas/remove_session.py",
        (
            "a session is removed by its owner",
            "if not is_id or removal.owner_of(self.bucket, session_id) != asked.caller:",
            "if not is_id or removal.owner_of(self.bucket, session_id) is None:",
            "test_removal.py::test_a_caller_removes_its_own_sessions_alone",
        ),
    ),
    *_walls(
        "lambdas/bucket/removal.py",
        (
            "no run is robbed of its session",
            "            lease.take(bucket, session_id, Lease(name, name, until), now)\n",
            "",
            "test_removal.py::test_nothing_is_left_of_a_session",
        ),
        (
            "no removal frees what another holds",
            'f"remove-{uuid.uuid4()}"',
            'f"remove-{session_id}"',
            "test_removal.py::test_nothing_is_left_of_a_session",
            "test_removal.py::test_a_removal_holds_its_session_alone_to_its_end",
        ),
        (
            "a removal holds its session to its end",
            "        hold()\n        gone += _remove_run(",
            "        gone += _remove_run(",
            "test_removal.py::test_a_removal_holds_its_session_alone_to_its_end",
        ),
        (
            "a removal deletes no lease but its own",
            "if held and held.execution == execution:",
            "if True:",
            "test_removal.py::test_who_takes_the_lease_of_a_removal_keeps_it",
        ),
        (
            "what a lost run spent is counted before it is removed",
            "        ledger.count_lost(bucket, run_id, attempt)\n",
            "        pass\n",
            "test_removal.py::test_what_a_lost_run_spent_counts_though_its_session_is_removed",
        ),
        (
            "another's upload is left alone",
            'if offer.get("owner") == record["owner"] and ',
            "if ",
            "test_removal.py::test_nothing_is_left_of_a_session",
        ),
        (
            "an upload that another run took is left alone",
            ' and used.get("run_id", run_id) == run_id',
            "",
            "test_removal.py::test_an_upload_goes_with_the_run_that_took_it",
        ),
        (
            "every version of the archive",
            "gone += _delete(bucket, older) + _delete(bucket, held[:1])",
            "gone += _delete(bucket, held[:1])",
            "test_removal.py::test_nothing_is_left_of_a_session",
        ),
        (
            "where a run is listed",
            "        for outcome in listing.OUTCOMES:\n",
            '        for outcome in ("claimed",):\n',
            "test_removal.py::test_nothing_is_left_of_a_session",
        ),
    ),
    *_walls(
        "lambdas/proxied.py",
        (
            "a key of another's in the usage plan",
            """f"key:{identity['apiKeyId']}")""",
            """identity["apiKeyId"])""",
            "test_proxied.py::test_the_readers_take_a_caller_for_whom_the_template_does",
        ),
    ),
    *_walls(
        "stacks/api.py",
        (
            "the key of a POST, and of who reads runs",
            '"api_key_required": self._deployment.auth == "api-key",',
            '"api_key_required": False,',
            "test_stack.py::test_post_wants_a_key_and_a_json_object",
            "test_stack.py::test_runs_are_handed_to_their_readers",
        ),
        (
            "IAM",
            "gateway.AuthorizationType.IAM if iam else",
            "gateway.AuthorizationType.NONE if iam else",
            "test_stack.py::test_iam_and_none_open_the_door_otherwise",
        ),
        (
            "a name by the gateway alone",
            """f'#if($context.identity.apiKeyId == "{key.key_id}")""",
            """f'#if($input.params("X-Who") == "{key.key_id}")""",
            "test_stack.py::test_templates_ask_the_gateway_who_calls",
        ),
    ),
    *_walls(
        "stacks/storage.py",
        (
            "no public access",
            "block_public_access=aws_s3.BlockPublicAccess.BLOCK_ALL,",
            "",
            "test_stack.py::test_the_bucket_is_private_versioned_and_kept",
        ),
        ("TLS", "enforce_ssl=True,", "", "test_stack.py::test_the_bucket_is_private_versioned_and_kept"),
        ("versions", "versioned=True,", "", "test_stack.py::test_the_bucket_is_private_versioned_and_kept"),
        (
            "the key for S3 alone",
            """conditions={"StringEquals": {"kms:ViaService": f"s3.{Aws.REGION}.amazonaws.com"}},""",
            "",
            "test_stack.py::test_each_role_uses_the_key_for_its_own_service_only",
        ),
    ),
    *_walls(
        "stacks/functions.py",
        (
            "RunClaude without the bucket",
            "            secret.allow(self._roles[state])\n",
            "            secret.allow(self._roles[state])\n"
            "            storage.allow(self._roles[state], SESSIONS, *reads)\n",
            "test_stack.py::test_run_claude_has_no_right_on_any_bucket",
        ),
        (
            "RestoreSession reads",
            'storage.allow(self._roles["RestoreSession"], SESSIONS, *reads)',
            'storage.allow(self._roles["RestoreSession"], SESSIONS, *reads, "s3:PutObject")',
            "test_stack.py::test_restore_session_reads_sessions_and_keeps_the_record",
        ),
        (
            "a function ends before its state",
            'run = self._image("RunClaude", self._clocks.run_function, secret)',
            'run = self._image("RunClaude", self._clocks.run_state, secret)',
            "test_stack.py::test_functions_end_before_their_states",
        ),
        (
            "a leg ends before its state",
            'leg = self._image("RunLeg", self._legs.function, secret)',
            'leg = self._image("RunLeg", self._legs.state, secret)',
            "test_stack.py::test_functions_end_before_their_states",
        ),
        (
            "legs in the network",
            "self._into_the_network(network, run, leg)",
            "self._into_the_network(network, run)",
            "test_stack.py::test_run_claude_alone_is_put_into_the_network",
        ),
    ),
    *_walls(
        "claude_workflow/cli/check/reach.py",
        (
            "a connection is no answer",
            "end.sendall(GET)\n        return bool(end.recv(1))",
            "end.sendall(GET)\n        return True",
            "test_ways.py::test_a_way_is_open_where_something_comes_back",
        ),
    ),
    *_walls(
        "stacks/network.py",
        (
            "grants of this account's",
            'ours = {"aws:ResourceAccount": Aws.ACCOUNT_ID, "aws:PrincipalAccount": Aws.ACCOUNT_ID}',
            'ours = {"aws:ResourceAccount": Aws.ACCOUNT_ID}',
            "test_private_network.py::test_the_bucket_is_reached_by_grants_and_no_other_bucket_is",
        ),
        (
            "this bucket",
            "(bucket.arn_for_objects(key) for key in",
            '(f"arn:aws:s3:::*/{key}" for key in',
            "test_private_network.py::test_the_bucket_is_reached_by_grants_and_no_other_bucket_is",
        ),
        (
            "what is missing is missing",
            '            _allowing(["s3:ListBucket"], [bucket.bucket_arn], ours),\n',
            "",
            "test_private_network.py::test_the_bucket_is_reached_by_grants_and_no_other_bucket_is",
        ),
        (
            "this secret",
            "[secret.secret.secret_arn], ours)",
            '["*"], ours)',
            "test_private_network.py::test_each_service_is_asked_what_a_run_asks",
        ),
        (
            "no other name",
            'action="BLOCK", block_response="NXDOMAIN"',
            'action="ALERT"',
            "test_private_network.py::test_no_other_name_is_answered",
        ),
        (
            "TLS alone",
            'from_port=443, to_port=443, description="TLS"',
            'from_port=0, to_port=65535, description="TLS"',
            "test_private_network.py::test_only_what_is_named_is_reached",
        ),
        (
            "nobody else at the endpoints",
            "source_security_group_id=self.network.group",
            'cidr_ip="0.0.0.0/0"',
            "test_private_network.py::test_nothing_comes_in",
        ),
    ),
    *_walls(
        "stacks/way_out.py",
        (
            "all else is dropped",
            '["aws:drop_established", "aws:alert_established"]',
            '["aws:alert_established"]',
            "test_private_network.py::test_the_firewall_passes_tls_that_names_a_host_and_drops_all_else",
        ),
        (
            "a whole name",
            "f'content:\"{host}\"; startswith; endswith'",
            "f'content:\"{host}\"; endswith'",
            "test_private_network.py::test_the_firewall_passes_tls_that_names_a_host_and_drops_all_else",
        ),
        (
            "at its own addresses",
            'if host in ADDRESSES else "$EXTERNAL_NET"',
            'if not host else "$EXTERNAL_NET"',
            "test_private_network.py::test_the_firewall_passes_tls_that_names_a_host_and_drops_all_else",
        ),
        (
            "no route to others",
            "return ANYWHERE if ANYWHERE[0] in known else known",
            "return ANYWHERE",
            "test_private_network.py::test_only_what_is_named_is_reached",
        ),
        (
            "through the firewall",
            'self._route(f"Through{number + 1}", routes, cidr, vpc_endpoint_id=firewall)',
            'self._route(f"Through{number + 1}", routes, cidr, nat_gateway_id=translation)',
            "test_private_network.py::test_only_what_is_named_is_reached",
        ),
    ),
    *_walls(
        "stacks/outside.py",
        (
            "by TLS on 443",
            'parts.hostname if parts.scheme == "https" and parts.port in (None, 443) else None',
            "parts.hostname",
            "test_private_network.py::test_who_is_spoken_to_otherwise_cannot_be_let_out",
        ),
        (
            "by its name",
            "if not named or _is_address(named):",
            "if not named:",
            "test_private_network.py::test_who_is_spoken_to_otherwise_cannot_be_let_out",
        ),
    ),
    *_walls(
        "stacks/deployment.py",
        (
            "closed is not open",
            "if self.network and self.egress.open:",
            "if False:",
            "test_deployment.py::test_a_private_network_is_no_other_one",
        ),
    ),
    *_walls(
        "stacks/machine.py",
        (
            "the long machine starts nothing",
            "self.express.role.add_to_principal_policy(",
            "long.role.add_to_principal_policy(",
            "test_rights.py::test_the_express_machine_may_hand_over_to_the_long_one",
            "test_stack.py::test_the_express_machine_alone_starts_executions_of_the_long_one",
        ),
        (
            "only legs in the long machine",
            '{**own, "RunClaude": leg}',
            '{**own, "RunLeg": leg}',
            "test_rights.py::test_each_machine_runs_claude_in_its_own_function",
        ),
    ),
    *_walls(
        "lambdas/settings.py",
        (
            "a lease until after the commit",
            "return self.state + 180",
            "return self.state + 60",
            "test_definition.py::test_a_lease_outlives_its_leg",
        ),
    ),
    *_walls(
        "statemachine/claude_agent_workflow.asl.json",
        (
            "the claim is RestoreSession's",
            '"claim": "{% $claim %}",\n          "told"',
            '"claim": "{% $states.input.claim %}",\n          "told"',
            "test_definition.py::test_persist_session_does_not_believe_run_claude",
        ),
    ),
    *_walls(
        "claude_workflow/local/disk.py",
        (
            "a write that is refused",
            "        if data is None:\n            _staged",
            "        return\n        if data is None:\n            _staged",
            "test_engine.py::test_what_the_disk_refuses_is_not_acknowledged",
        ),
        (
            "a refusal is told",
            'failed: tuple[Any, ...] = s3._error("InternalError", f"The disk refused: {refused.strerror}.", 500)',
            'failed: tuple[Any, ...] = (200, {}, b"")',
            "test_engine.py::test_what_the_disk_refuses_is_not_acknowledged",
        ),
        (
            "what is refused is forgotten",
            "_put(objects, key, record)",
            "pass",
            "test_engine.py::test_what_the_disk_refuses_is_not_acknowledged",
        ),
        (
            "bytes that are cut are none",
            "if there != size:",
            "if False:",
            "test_engine.py::test_what_cannot_be_read_is_an_error_and_no_miss",
        ),
        (
            "rights that another took",
            "        take_rights(Path(s3.DATA_DIR))\n",
            "",
            "test_engine.py::test_modes_that_another_changed_are_set_right",
        ),
        (
            "fsync",
            "        file.flush()\n        os.fsync(file.fileno())\n",
            "",
            "test_engine.py::test_what_is_acknowledged_was_flushed",
        ),
        (
            "fsync of the directory",
            "    try:\n        os.fsync(opened)\n",
            "    try:\n        pass\n",
            "test_engine.py::test_what_is_acknowledged_was_flushed",
        ),
    ),
    *_walls(
        "claude_workflow/local/mend.py",
        (
            "half a write",
            "    for path in touched:\n        take_back(path)\n",
            "",
            "test_engine.py::test_half_a_write_is_taken_back",
        ),
    ),
    *_walls(
        "claude_workflow/cli/printing.py",
        (
            "what a terminal would obey",
            "MARK if unicodedata.category(char) in OBEYED and",
            "MARK if False and",
            "test_printing.py::test_nothing_of_it_is_obeyed",
        ),
    ),
    Wall(
        "a file is got through a link that stands in the way",
        "claude_workflow/cli/sessions/get.py",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
        ("test_sessions.py::test_nothing_is_got_outside_the_folder",),
    ),
    Wall(
        "names of a session's files drive a terminal",
        "claude_workflow/cli/sessions/files.py",
        "    if sys.stdout.isatty():\n",
        "    if False:\n",
        ("test_sessions.py::test_files_are_listed_for_terminals_and_for_pipes",),
    ),
    Wall(
        "the ledger knows a caller that was removed",
        "claude_workflow/cli/sessions/remove.py",
        "    entries = ledger.forget(bucket, owner)\n",
        "    entries = 1\n",
        ("test_sessions.py::test_nothing_of_a_caller_is_left_in_the_bucket",),
    ),
    Wall(
        "replaced versions of the ledger know a caller that was removed",
        "lambdas/bucket/ledger.py",
        "for each in versions.below(bucket, days) if Entry",
        "for each in [] if Entry",
        ("test_sessions.py::test_nothing_of_a_caller_is_left_in_the_bucket",),
    ),
    Wall(
        "files are put over what a run has committed meanwhile",
        "lambdas/bucket/commit.py",
        '    condition = {"IfMatch": base.etag} if base else {"IfNoneMatch": "*"}\n    try:\n',
        "    condition: dict[str, str] = {}\n    try:\n",
        ("test_sessions.py::test_a_put_meets_its_own_work_and_no_others",),
    ),
    Wall(
        "the first turn on files that were put resumes a conversation that nobody had",
        "lambdas/restore_session.py",
        "resume=bool(claim.base and claim.base.turns) or",
        "resume=claim.base is not None or",
        ("test_sessions.py::test_what_was_put_has_no_conversation_yet",),
    ),
]


def outcome(wall: Wall, tree: Path) -> str:
    """What became of the tests in a copy of this tree without the wall."""
    place = tree / wall.file
    whole = place.read_text()
    assert whole.count(wall.old) == 1, f"{wall.file} no longer has what is taken away: {wall.name}"
    place.write_text(whole.replace(wall.old, wall.new))
    tests = [f"tests/{test}" for test in wall.tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "--tb=line", *tests]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"broken: not done in {SECONDS} seconds"
    finally:
        place.write_text(whole)
    failed = re.search(r"^FAILED (.*)$", done.stdout, re.M)
    if done.returncode == 1 and failed and not re.search(r"^ERROR tests/", done.stdout, re.M):
        return f"held: {failed[1]}"
    return "OPEN" if done.returncode == 0 else f"broken: {done.stdout[-1500:]}{done.stderr[-500:]}"


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree as it is, which other users may read, as some tests ask."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        Path(folder).chmod(0o755)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file() or (ROOT / name).is_symlink():  # `stacks/agent` leads to a folder
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(folder) / name, follow_symlinks=False)
        yield Path(folder)


def main() -> None:
    """The command; it exits with 1 where a wall is not held."""
    parser = argparse.ArgumentParser(description="Takes each promised wall away, and sees a test fail.")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="walls with this in file, name or tests")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    asked = parser.parse_args()
    walls = [wall for wall in WALLS if not asked.only or any(word in str(wall) for word in asked.only)]

    def tried(wall: Wall) -> bool:
        with copied() as tree:
            came = outcome(wall, tree)
        print(f"{wall.file}: {wall.name}: {came}", flush=True)
        return came.startswith("held")

    with ThreadPoolExecutor(asked.jobs) as pool:
        held = list(pool.map(tried, walls))
    print(f"{sum(held)} of {len(held)} walls are held.")
    sys.exit(not all(held))


if __name__ == "__main__":
    main()

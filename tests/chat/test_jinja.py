"""Templates in Jinja: what they render, what is derived from them, and that a hostile one ends in one line."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("jinja2")

from rookery import chat, errors
from rookery.chat.jinja import THINK, Jinja
from rookery.chat.template import Message

# Does what models/templates/llama-cpp-rwkv-world.jinja of llama.cpp does, which its converter writes into a GGUF: the
# last system message goes first, contents are trimmed, old thoughts dropped, messages of tools too.
LLAMA = r"""
{%- set told = namespace(text='') -%}
{%- for m in messages if m.role == 'system' -%}{%- set told.text = m.content -%}{%- endfor -%}
{{- bos_token -}}
{%- if told.text -%}{{- 'System: ' ~ told.text ~ '\n\n' -}}{%- endif -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}{{- 'User: ' ~ (m.content | trim) ~ '\n\n' -}}
    {%- elif m.role == 'assistant' -%}
        {{- 'Assistant: ' ~ (m.content.split('</think>') | last | trim) ~ '\n\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:' -}}
    {%- if enable_thinking is defined -%}{{- ' <think>' if enable_thinking else ' <think>\n</think>' -}}{%- endif -%}
{%- endif -%}
"""
SIMPLE = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}\n\n{% endfor %}"
SIMPLE += "{% if add_generation_prompt %}Assistant:{% endif %}"
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
CHATML += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
UNTRIMMED = "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\\n\\n' }}{% endfor %}"
UNTRIMMED += "{% if add_generation_prompt %}Assistant:{% endif %}"
LOOPS = "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
LOOPS += "{% endfor %}{% else %}fine{% endif %}"


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


TALK = [system("Be brief."), user("Hi"), assistant(" Hello.\n\nYes?"), user("2 + 2?")]
ASK = [user("x")]


def pid(template: Jinja) -> int:
    process = template._worker._process
    assert process is not None
    return process.pid


@pytest.fixture(scope="module")
def llama() -> Jinja:
    return Jinja(LLAMA)


TEXT = st.text(st.sampled_from("ab Z.:{}%\n\t。é🦜'\"\\"), max_size=30).map(chat.clean)


@settings(deadline=None)
@given(
    head=st.none() | TEXT.filter(bool), said=st.lists(TEXT.filter(bool), min_size=1, max_size=5), reply=st.booleans()
)
def test_llama_cpp_writes_what_the_builtins_write(llama: Jinja, head: str | None, said: list[str], reply: bool) -> None:
    talk = [assistant(f" {text}") if i % 2 else user(text) for i, text in enumerate(said)]
    talk = [*([] if head is None else [system(head)]), *talk]
    for name in ("world", "g1"):
        theirs = chat.load(name).render(talk, reply)
        assert llama.render(talk, reply) == theirs + ("" if reply else "\n\n")


@pytest.mark.parametrize("think", THINK)
def test_llama_cpp_thinks_as_g1(llama: Jinja, think: str) -> None:
    """It closes the bracket that g1 leaves to the model, and has but one way to think and one not to."""
    ours = {"off": "fake", "short": "on", "medium": "on", "long": "on"}.get(think, think)
    assert llama.render(TALK, think=think) == chat.load("g1").render(TALK, think=ours) + ">"
    assert llama.begun(think=think) == chat.load("g1").begun(think=ours) + ">"


def test_llama_cpp_drops_old_thoughts_as_g1(llama: Jinja) -> None:
    talk = [user("2 + 2?"), assistant("\nHm.</think>\nFour."), user("Sure?")]
    assert llama.render(talk) == chat.load("g1").render(talk)
    assert llama.follow(talk, think="on") is None
    assert llama.follow([user("a"), assistant(" b"), user("c")], think="fake") is None  # what was opened is left out


def test_what_is_derived_from_a_template(llama: Jinja) -> None:
    for template in (llama, Jinja(SIMPLE)):
        assert template.stops == ("\n\nUser:", "\n\nAssistant:")
        assert template.follows_reply() == "\n\nUser:"
        assert template.opening(TALK) == "System: Be brief.\n\nUser:"
        assert template.opening(TALK[1:]) == ""
        assert template.begun() == ""
        assert template.shown(" Hello.") == "Hello."
        assert template.sampling is None


def test_a_mark_ends_a_reply_where_there_is_one() -> None:
    template = Jinja(CHATML)
    assert template.stops == ("<|im_end|>",)
    assert template.follows_reply() == "<|im_end|>\n<|im_start|>user\n"
    assert template.follow([user("a"), assistant("b"), user("c")]) == (
        "<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.follow([user("a"), assistant("b\n"), user("c")]) is not None  # kept, not trimmed


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{{ messages | length }}", "constant {# #}{{ '' }}", "{{"]
)
def test_without_a_talk_to_look_at_the_world_s_stops_hold(source: str) -> None:
    template = Jinja(source)
    assert template.stops == chat.load("world").stops
    assert template.follows_reply() == ""


@pytest.mark.parametrize("source", [LLAMA, SIMPLE, UNTRIMMED, CHATML])
@pytest.mark.parametrize("replies", [(" b", " d"), (" b\n\nb", " d.")])
def test_turn_by_turn_is_the_same_text(source: str, replies: tuple[str, str]) -> None:
    template = Jinja(source)
    if source == CHATML:
        replies = (replies[0].strip(), replies[1].strip())
    talk = [user("a"), assistant(replies[0]), user("c"), assistant(replies[1]), user("e")]
    read = template.render(talk[:1])
    for turn in (3, 5):
        read += talk[turn - 2]["content"] + (template.follow(talk[:turn]) or "")
    assert read == template.render(talk)


@pytest.mark.parametrize("reply", ["b", " b ", " b\n", "  b", "\nb"])
def test_a_reply_that_the_template_trims_is_not_followed(llama: Jinja, reply: str) -> None:
    assert llama.follow([user("a"), assistant(reply), user("c")]) is None


def test_a_system_message_that_is_moved_is_not_followed(llama: Jinja) -> None:
    assert llama.follow([user("a"), assistant(" b"), system("now")]) is None
    assert llama.opening([system("x"), user("a"), system("y")]) == ""


def test_a_template_that_insists_on_a_system_message() -> None:
    template = Jinja(
        "{% if messages[0].role != 'system' %}{{ raise_exception('System first,\nplease.') }}{% endif %}" + SIMPLE
    )
    assert template.stops == ("\n\nUser:", "\n\nAssistant:")
    with pytest.raises(errors.TemplateError) as caught:
        template.render(ASK)
    assert str(caught.value) == "jinja: System first, please."


def test_what_a_template_is_given() -> None:
    names = ["config", "model", "os", "request", "documents", "date_string", "custom_tools", "name"]
    source = "".join(f"{{{{ {name} is defined }}}} " for name in names)
    template = Jinja(
        source + "{{ enable_thinking }}|{{ bos_token }}|{{ eos_token }}|{{ tools is none }}|{{ messages }}"
    )
    message: Any = {"role": "user", "content": "hi", "secret": 1}
    assert template.render([message]) == "False " * 8 + "|||True|[{'role': 'user', 'content': 'hi'}]"
    assert template.render([message], think="on").split("|")[0] == "False " * 8 + "True"
    assert "|False|" in template.render([message], tools=[{"name": "f"}])


def test_words_are_data_and_never_template(llama: Jinja) -> None:
    text = "{{ 7 * 7 }}{% raw %}{# x #}"
    assert llama.render([user(text)]) == f"User: {text}\n\nAssistant:"


def test_jinja_is_set_up_as_in_transformers() -> None:
    source = """{% for m in messages %}
    {% if loop.index == 2 %}{% break %}{% endif %}
    {% generation %}
{{ m.content }}
    {% endgeneration %}
{% endfor %}
{{ tools | tojson }}|{{ {'b': '<é>', 'a': 1} | tojson(indent=1) }}|{{ strftime_now('%%') }}"""
    text = Jinja(source).render([user("one"), user("two")], tools=["<é>"])
    assert text == 'one\n["<é>"]|{\n "b": "<é>",\n "a": 1\n}|%'


def test_think_is_for_templates_that_know_it() -> None:
    with pytest.raises(errors.InputError, match="knows no thinking"):
        Jinja(SIMPLE).render(ASK, think="on")
    with pytest.raises(errors.InputError, match="choose from off, fake"):
        Jinja(LLAMA).render(ASK, think="deep")
    with pytest.raises(errors.InputError, match="at least one message"):
        Jinja(SIMPLE).render([])
    with pytest.raises(errors.InputError, match="no role 'critic'"):
        Jinja(SIMPLE).render([{"role": "critic", "content": ""}])


def test_where_jinja_comes_from(tmp_path: Path) -> None:
    assert chat.load(SIMPLE).render(ASK) == "User: x\n\nAssistant:"
    path = tmp_path / "mine.jinja"
    path.write_text("mine {{ messages[0].content }}")
    for place in (str(path), path):
        template = chat.load(place)
        assert template.name == str(path)
        assert template.render(ASK) == "mine x"
    assert chat.load(None, {"tokenizer.chat_template": SIMPLE}).render(ASK) == "User: x\n\nAssistant:"
    assert chat.load(None, {"rookery.template": "no", "tokenizer.chat_template": SIMPLE}).name != "plain"


def test_jinja_of_a_hugging_face_folder(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    for said in ("config", [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": "config"}]):
        text = json.dumps({"chat_template": said}).replace('"config"', '"config {{ messages[0].content }}"')
        config.write_text(text)
        assert chat.load(None, {}, str(tmp_path)).render(ASK) == "config x"
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert chat.load(None, {}, str(tmp_path)).render(ASK) == "file x"
    assert chat.load(None, {"tokenizer.chat_template": SIMPLE}, str(tmp_path)).render(ASK).startswith("User")


def test_without_jinja2_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rookery.chat.jinja.find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtra, match=r"pip install 'rookery\[chat\]'"):
        chat.load(None, {"tokenizer.chat_template": SIMPLE})


# Hostile templates. Each of them ends by its limits, in one line, and the next rendering is none the worse.

INNER = [
    "''.__class__", "''.__class__.__mro__[1].__subclasses__()", "''['__class__']", "'' | attr('__class__')",
    "[''] | map(attribute='__class__') | list", "[''] | groupby('__class__')", "'{0.__class__}'.format('')",
    "'{a.__class__.__mro__}'.format_map({'a': 1})", "messages.__init__", "self.__init__.__globals__",
    "raise_exception.__globals__", "strftime_now.__code__", "lipsum.__globals__.os.system('true')",
    "cycler.__init__.__globals__", "namespace.__init__", "joiner.__init__", "(messages | list).__reduce__()",
    "messages.append(1)", "messages.clear()", "messages[0].update({})", "range.__globals__", "dict.mro()",
]  # fmt: skip
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10 ** (10 ** 8) }}",
    "{{ (messages | length + 9) ** ((messages | length + 9) ** 8) }}",
    "{% macro f(n) %}{% for i in range(9) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ f(90) }}",
]
GREEDY = [
    "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1, 1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ messages[0].content * 10 ** 10 }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x' | indent(10 ** 10, true) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ ('a' * 10 ** 8).split('a') }}",
    "{% set x = [1] * 10 ** 6 %}{{ x | map('string') | map('center', 99999) | list }}",
]
LONG = [
    "{{ 'x' * 10 ** 7 }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "{{ '\\x00' * 5000000 }}",
]
BROKEN = [
    ("{% for %}", "line 1: "),
    ("a\n{{ x", "line 2: "),
    ("{{ range(10 ** 9) }}", "Range too big"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    ("{% include 'other' %}", "loader"),
    ("{% import '/etc/passwd' as x %}", "loader"),
    ("{{ nothing.at.all }}", "undefined"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ raise_exception('two\nlines' + 'x' * 99999) }}", "two lines"),
    ("{{ raise_exception() }}", "TypeError"),
    ("{{ messages | tojson(nonsense=1) }}", "TypeError"),
]
DEEP = [
    "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "{% if 1 %}" * 5_000,
    "{{ " + "-" * 100_000 + "1 }}",
    "{{ [" * 9999,
]


def refused(source: str, *words: str, seconds: float = 2.0) -> None:
    """`source` is a TemplateError of one line that has one of `words`."""
    template = Jinja(source, "theirs", seconds)
    with pytest.raises(errors.TemplateError) as caught:
        template.render(ASK)
    said = str(caught.value)
    assert said.startswith("theirs: ")
    assert "\n" not in said
    assert len(said) < 300
    assert any(word in said for word in words), said


@pytest.mark.parametrize("what", INNER)
def test_a_template_that_reaches_for_attributes(what: str) -> None:
    refused("{{ " + what + " }}", "not for templates", "SecurityError", "not safely callable", "unsafe")


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_does_not_end(source: str) -> None:
    refused(source, "takes longer than 0.5 s", seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only time is limited")
@pytest.mark.parametrize("source", GREEDY)
def test_a_template_that_asks_for_too_much_memory(source: str) -> None:
    refused(source, "asks for too much memory", seconds=30.0)


@pytest.mark.parametrize("source", LONG)
def test_a_template_that_writes_too_much(source: str) -> None:
    refused(source, "writes more than", seconds=20.0)


@pytest.mark.parametrize(("source", "word"), BROKEN)
def test_a_template_that_is_broken(source: str, word: str) -> None:
    refused(source, word)


@pytest.mark.parametrize("source", DEEP, ids=range(len(DEEP)))
def test_a_template_that_is_nested_without_measure(source: str) -> None:
    refused(source, "theirs", seconds=20.0)


def test_a_source_beyond_measure_is_not_even_tried() -> None:
    with pytest.raises(errors.TemplateError, match="at most"):
        Jinja("{{ 1 }}" + " " * (1 << 20))


def test_a_long_talk_is_no_attack() -> None:
    talk = [assistant(" y" * 500) if i % 2 else user("x" * 500) for i in range(2001)]
    text = Jinja(SIMPLE).render(talk)
    assert text == chat.load("world").render(talk)
    assert len(text) > 1_000_000


# The process.


def test_one_process_renders_all() -> None:
    template = Jinja(LOOPS)
    assert template.render(ASK) == "fine"
    first = pid(template)
    with pytest.raises(errors.InputError):
        template.render([])
    assert template.render(ASK) == "fine"
    assert pid(template) == first


@pytest.mark.parametrize("how", ["late", "killed", "interrupted"])
def test_a_process_that_ended_is_replaced(how: str) -> None:
    template = Jinja(LOOPS, seconds=2.0 if how == "late" else 30.0)
    assert template.render(ASK) == "fine"
    first = pid(template)
    if how == "late":
        with pytest.raises(errors.TemplateError, match="takes longer"):
            template.render([user("loop")])
    elif how == "killed":
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: gone(first))
    else:
        main = threading.main_thread().ident
        assert main
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            template.render([user("loop")])
    assert template.render(ASK) == "fine"
    assert pid(template) != first
    assert gone(first)


def test_a_process_killed_at_work_is_an_error_and_then_replaced() -> None:
    template = Jinja(LOOPS, seconds=30.0)
    assert template.render(ASK) == "fine"
    threading.Timer(0.3, os.kill, (pid(template), signal.SIGKILL)).start()
    with pytest.raises(errors.TemplateError, match="was ended"):
        template.render([user("loop")])
    assert template.render(ASK) == "fine"


def test_threads_share_a_template(llama: Jinja) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: llama.render([user(str(i) * 50)]), range(100)))
    assert texts == [f"User: {str(i) * 50}\n\nAssistant:" for i in range(100)]


def test_nothing_is_left_of_a_template() -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    before, pids = descriptors(), []
    for source in (SIMPLE, LLAMA, "{{ 1 / 0 }}", "{{", "{{ 10 ** (10 ** 8) }}"):
        template = Jinja(source, seconds=3.0)
        try:
            template.render(ASK)
            pids.append(pid(template))
        except errors.TemplateError:
            pass
        del template
    assert descriptors() == before
    assert len(pids) == 2
    assert all(gone(one) for one in pids)


def gone(process: int) -> bool:
    """Whether no such process runs; one that its parent has not asked after (which may be nobody's) counts as gone."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return True
    return state == "Z"


def eventually(true: Callable[[], bool]) -> bool:
    return any(true() or time.sleep(0.05) for _ in range(1200))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("forks", "loops"), list(product((False, True), repeat=2)))
def test_the_process_dies_with_its_owner(forks: bool, loops: bool) -> None:
    """Even when the owner is killed, has a child that lives on, or the template was at work."""
    code = f"""
import os, signal, threading, time
from rookery.chat.jinja import Jinja
template = Jinja({LOOPS!r}, seconds=1.0)
template.render([{{"role": "user", "content": "x"}}])
child = 0
if {forks}:
    child = os.fork()
    if not child:
        os.close(1), os.close(2), time.sleep(600)
print(template._worker._process.pid, child, flush=True)
if {loops}:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    template.render([{{"role": "user", "content": "loop"}}])
os.kill(os.getpid(), signal.SIGKILL)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == -signal.SIGKILL, out.stderr
    worker, child = map(int, out.stdout.split())
    try:
        assert eventually(lambda: gone(worker))
        assert not (forks and gone(child))
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_renders_in_a_process_of_its_own() -> None:
    template = Jinja(SIMPLE)
    text = template.render(ASK)
    first = pid(template)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on threads
        child = os.fork()
    if not child:
        try:
            again = template.render(ASK) == text
            os.write(writer, f"{again} {pid(template) != first}".encode())
            template._worker.stop()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == "True True"
    os.waitpid(child, 0)
    assert template.render(ASK) == text
    assert pid(template) == first

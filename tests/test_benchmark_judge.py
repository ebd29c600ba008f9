"""The benchmark that judges templates of other packages: what it reads, counts and says."""

import json
import zipfile

import pytest

from benchmarks import judge

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SILENT = "{{ raise_exception('not today, ' ~ messages[0].role) }}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "plain.jinja").write_text(CHATML)
    (tmp_path / "mine" / "deep" / "plain-tool_use.jinja").write_text("{{ tools }}" + CHATML)
    (tmp_path / "mine" / "readme.md").write_text("no template")
    return tmp_path / "mine"


def test_templates_come_from_folders_and_from_wheels(folder, tmp_path):
    wheel = tmp_path / "mine-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in folder.rglob("*.*"):
            file.write(path, path.name)
    for place, origin in ((folder, "mine"), (wheel, "mine 1.2")):
        items = {item.name: item for item in judge.items_of(str(place))}
        assert set(items) == {"plain", "plain-tool_use", "plain + plain-tool_use"}
        assert {item.origin for item in items.values()} == {origin}
        named = items["plain + plain-tool_use"].sources
        assert named == {"default": CHATML, "tool_use": "{{ tools }}" + CHATML}


def test_what_holds_no_templates_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.whl").write_text("no wheel")
    for place in (tmp_path, tmp_path / "text.whl", tmp_path / "missing"):
        with pytest.raises(SystemExit, match="template|jinja"):
            judge.items_of(str(place))


def test_reasons_are_counted_without_what_they_quote():
    assert judge.reason("turn 12: the template drops the text of the user turn, 'a: b'. Put") == (
        "the template drops the text of the user turn"
    )
    refused = "the chat template refuses the roles ['user']: no"
    assert judge.reason(refused) == "the chat template refuses it"
    assert judge.reason("conversation 'x': it is 5 o'clock") == judge.reason("conversation 'y': it")


def test_a_template_is_judged_with_a_borrowed_tokenizer(folder):
    items = {item.name: item for item in judge.items_of(str(folder))}
    result = judge.judge(items["plain + plain-tool_use"], all_shapes=False)
    assert result.wrong == {}
    assert set(result.stops) == {"<|im_end|>"}
    assert result.exact >= 10 and result.exact + result.refused.total() == len(judge.FEW)
    silent = judge.judge(judge.Item("mine", "silent", {"default": SILENT}), all_shapes=False)
    assert silent.refused["the chat template refuses it"] == len(judge.FEW)
    counts = judge.summary([result, silent])
    assert counts["templates"] == 2 and counts["templates_with_a_mask"] == 1
    assert counts["conversations"] == 2 * len(judge.FEW)
    assert counts["exact"] == result.exact and counts["wrong"] == 0


def test_items_that_share_a_tokenizer_are_judged_together(folder):
    items = judge.items_of(str(folder)) * 9
    assert [len(batch) for batch in judge.batches(items)] == [12, 12, 3]


def test_wrong_masks_are_shown_and_change_the_exit_status(folder, tmp_path, monkeypatch, capsys):
    def run(items, all_shapes, processes, show):
        result = judge.Result("mine", "plain", exact=3, wrong={"system": "turn 2: off by one"})
        show(result)
        return [result]

    monkeypatch.setattr(judge, "run", run)
    output = tmp_path / "judge.json"
    assert judge.main([str(folder), "--no-trl", "--output", str(output)]) == 1
    shown = capsys.readouterr().out
    assert "mine: plain: 3 exact, 0 refused, 1 wrong\n    system: turn 2: off by one\n" in shown
    found = json.loads(output.read_text())
    assert found["sources"]["mine"]["wrong"] == 1
    assert found["command"].split()[:4] == ["python", "-m", "benchmarks.judge", "mine"]
    assert str(tmp_path) not in output.read_text()


def test_without_templates_there_is_nothing_to_judge(folder):
    with pytest.raises(SystemExit, match="no templates"):
        judge.main([str(folder), "--no-trl", "--only", "nothing like it"])

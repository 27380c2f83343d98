"""Reading YAML: variables, anchors, includes, and files that cannot be read at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pd_validate.errors import SpecError
from pd_validate.spec.load import load_cluster
from pd_validate.spec.source import read


def data(tmp_path: Path, text: str, **environ: str) -> dict[str, object]:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    result = read(path, environ).data()
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("13700", 13700),
        ("-1", -1),
        ("0.9", 0.9),
        ("1e-3", 0.001),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ('"13700"', "13700"),
        ("0.10.1.1", "0.10.1.1"),
        # What YAML 1.1 makes of these surprises people: 8, 90, True, a date.
        ("010", "010"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("2026-01-01", "2026-01-01"),
        ("模型", "模型"),
    ],
)
def test_scalars_are_read_as_in_yaml_1_2(tmp_path: Path, written: str, value: object) -> None:
    assert data(tmp_path, f"key: {written}") == {"key": value}


class TestVariables:
    def test_a_variable_is_replaced_before_its_type_is_known(self, tmp_path: Path) -> None:
        assert data(tmp_path, "port: ${PORT}", PORT="2222") == {"port": 2222}

    def test_a_quoted_variable_stays_text(self, tmp_path: Path) -> None:
        assert data(tmp_path, 'port: "${PORT}"', PORT="2222") == {"port": "2222"}

    def test_part_of_a_value(self, tmp_path: Path) -> None:
        assert data(tmp_path, "path: /model/${NAME}-A3B", NAME="Qwen3") == {
            "path": "/model/Qwen3-A3B"
        }

    def test_default_for_an_unset_or_empty_variable(self, tmp_path: Path) -> None:
        text = "path: ${MODEL:-/opt/model}"
        assert data(tmp_path, text) == {"path": "/opt/model"}
        assert data(tmp_path, text, MODEL="") == {"path": "/opt/model"}
        assert data(tmp_path, text, MODEL="/m") == {"path": "/m"}

    def test_a_doubled_dollar_is_a_dollar(self, tmp_path: Path) -> None:
        assert data(tmp_path, "args: $${HOME}") == {"args": "${HOME}"}

    def test_a_single_dollar_needs_no_care(self, tmp_path: Path) -> None:
        assert data(tmp_path, "args: $HOME") == {"args": "$HOME"}

    def test_its_content_is_not_shown_in_messages(self, tmp_path: Path) -> None:
        path = tmp_path / "cluster.yaml"
        path.write_text("proxy: {host: p1, port: '${SECRET}'}")
        with pytest.raises(SpecError) as caught:
            load_cluster(path, environ={"SECRET": "hunter2"})
        assert "hunter2" not in str(caught.value)
        assert "`${SECRET}`" in str(caught.value)


class TestAnchors:
    def test_alias_and_merge_key(self, tmp_path: Path) -> None:
        text = """
            base: &base {role: decode, port: 13700}
            one: {<<: *base, host: d1}
            two: {<<: *base, port: 13701}
        """
        read_data = data(tmp_path, text)
        assert read_data["one"] == {"role": "decode", "port": 13700, "host": "d1"}
        assert read_data["two"] == {"role": "decode", "port": 13701}

    def test_earlier_merge_sources_win(self, tmp_path: Path) -> None:
        text = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}"
        assert data(tmp_path, text)["c"] == {"x": 1, "y": 2}

    def test_an_anchor_inside_itself_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="an anchor that contains itself"):
            data(tmp_path, "a: &a [*a]")


class TestIncludes:
    def test_the_including_file_is_laid_over_the_included(self, tmp_path: Path) -> None:
        site = tmp_path / "site" / "site.yaml"
        site.parent.mkdir()
        site.write_text("nic: eth0\nssh: {user: ops, port: 22}\nargs: [a, b]")
        text = "include: site/site.yaml\nssh: {port: 2222}\nargs: [c]\nname: mine"
        assert data(tmp_path, text) == {
            "nic": "eth0",
            "ssh": {"user": "ops", "port": 2222},
            "args": ["c"],
            "name": "mine",
        }

    def test_several_are_laid_over_one_another(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("x: 1\ny: 1")
        (tmp_path / "b.yaml").write_text("x: 2")
        assert data(tmp_path, "include: [a.yaml, b.yaml]") == {"x": 2, "y": 1}

    def test_a_mistake_in_an_included_file_is_placed_there(self, tmp_path: Path) -> None:
        site = tmp_path / "site.yaml"
        site.write_text("nic: eth0\nssh: {usr: ops}")
        path = tmp_path / "cluster.yaml"
        path.write_text("include: site.yaml\nhosts: {}")
        with pytest.raises(SpecError) as caught:
            load_cluster(path, environ={})
        assert f"{site}:2:7: unknown key `usr` in `ssh`; did you mean `user`?" in str(caught.value)

    def test_a_circle_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("include: file.yaml")
        with pytest.raises(SpecError, match=r"a\.yaml:1:10: file\.yaml includes itself"):
            data(tmp_path, "include: a.yaml")


class TestUnreadable:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError) as caught:
            load_cluster(tmp_path / "absent.yaml")
        assert str(caught.value) == f"{tmp_path}/absent.yaml: no such file"

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="cannot be read: Is a directory"):
            load_cluster(tmp_path)

    @pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n..."])
    def test_an_empty_file(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(SpecError, match=r"empty|must be a mapping"):
            data(tmp_path, text)

    def test_a_list(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"file\.yaml:1:1: the file must be a mapping of keys"):
            data(tmp_path, "- hosts")

    def test_two_documents(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"file\.yaml:2:1: not valid YAML: but found another"):
            data(tmp_path, "a: 1\n---\nb: 2")

    def test_other_than_utf_8(self, tmp_path: Path) -> None:
        path = tmp_path / "cluster.yaml"
        path.write_bytes("name: 中".encode("gb18030"))
        with pytest.raises(SpecError, match="not UTF-8 text \\(byte 6\\)"):
            load_cluster(path)

    def test_a_control_character(self, tmp_path: Path) -> None:
        with pytest.raises(
            SpecError, match=r"file\.yaml:2:5: not valid YAML: the character #x0007"
        ):
            data(tmp_path, "a: 1\nb: 2\x07")


def test_all_mistakes_are_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("nicc: eth0\nmodel: {path: 3}\nhosts: {}\ninstances: {}\nproxy: {}\n")
    with pytest.raises(SpecError) as caught:
        load_cluster(path, environ={})
    places = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert places == [f"{path}:1:1", f"{path}:2:15", f"{path}:5:1"]
    assert (caught.value.line, caught.value.column) == (1, 1)

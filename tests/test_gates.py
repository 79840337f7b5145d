"""The gates of a pipeline: a limit in percent, the exit code, and the XML that says the same."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import click
import pytest

from tvmbridge.cli.gates import Case, Percent, write_junit
from tvmbridge.errors import OutputError


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0), (" 150 %", 1.5), ("0.99", 0.99)])
def test_a_share_is_read_from_percent_or_a_number(text, share):
    assert Percent().convert(text, None, None) == pytest.approx(share)


@pytest.mark.parametrize("text", ["five", "", "%", "-1%", "nan", "inf", "inf%", "5%%", "5", "1"])
def test_what_is_no_share_is_wrong_usage(text):
    with pytest.raises(click.BadParameter, match="no share"):
        Percent().convert(text, None, None)


def test_junit_xml_counts_and_names_what_failed_and_what_was_left_out(tmp_path):
    path = tmp_path / "junit.xml"
    cases = [Case("fine", 1.5), Case("slow <&>", failure='takes "5 %" longer\x07'), Case("arm", skipped="not here")]
    write_junit(str(path), "tvmbridge bench", cases)
    (suite,) = ET.parse(path).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    fine, slow, arm = suite
    assert (fine.get("name"), fine.get("time"), len(fine)) == ("fine", "1.500", 0)
    assert slow.get("name") == "slow <&>" and slow[0].get("message") == 'takes "5 %" longer '
    assert arm[0].tag == "skipped" and arm[0].get("message") == "not here"


def test_junit_xml_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_junit(str(tmp_path / "none" / "junit.xml"), "s", [])

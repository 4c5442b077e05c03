"""Zip files of strangers: what may not be read is refused before it is unpacked."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from riskml.errors import DataError
from riskml.tables.ingest import archive
from riskml.tables.ingest.archive import read_published

CSV = b"calc_time,funding_interval_hours,last_funding_rate\n1704067200000,8,0.0001\n" * 40
EXPECTED = "X-fundingRate-2024-01.csv"


def packed(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members:
            file.writestr(name, data, compress_type=method)
    return buffer.getvalue()


GOOD = packed((EXPECTED, CSV))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / EXPECTED.replace(".csv", ".zip")


def refusal(target: Path, raw: bytes) -> tuple[str, str]:
    """Code and message of the refusal; nothing but the file itself lies in the folder afterwards."""
    target.write_bytes(raw)
    with pytest.raises(DataError, match=target.name) as caught:
        read_published(target, target.name)
    assert list(target.parent.iterdir()) == [target]
    (problem,) = caught.value.problems
    assert problem.fix
    return problem.code, problem.message


def test_the_one_csv_is_read_from_the_zip_and_as_it_is(target):
    target.write_bytes(GOOD)
    assert read_published(target, "x") == CSV
    plain = target.with_suffix(".csv")
    plain.write_bytes(CSV)
    assert read_published(plain, "x") == CSV


@pytest.mark.parametrize(
    "name",
    [
        f"../{EXPECTED}",
        f"a/../../{EXPECTED}",
        f"/etc/{EXPECTED}",
        f"\\\\server\\{EXPECTED}",
        f"..\\{EXPECTED}",
        f"C:\\{EXPECTED}",
        f"C:{EXPECTED}",
    ],
)
def test_a_member_that_would_unpack_outside_the_target_is_refused(target, name):
    code, message = refusal(target, packed((name, CSV)))
    assert code == "unsafe-archive"
    assert "would unpack outside the target" in message


@pytest.mark.parametrize(
    "name", ["other.csv", f"folder/{EXPECTED}", "nested.zip", "X-fundingRate-2024-01.CSV"]
)
def test_a_member_of_another_name_is_refused(target, name):
    code, message = refusal(target, packed((name, CSV)))
    assert code == "unsafe-archive"
    assert f"has to be '{EXPECTED}'" in message


def test_a_second_member_is_refused(target):
    assert "found 2 members" in refusal(target, packed((EXPECTED, CSV), ("more.csv", CSV)))[1]
    assert "found 0 members" in refusal(target, packed())[1]


def test_a_link_is_refused(target):
    link = zipfile.ZipInfo(EXPECTED)
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    code, message = refusal(target, packed((link, b"/etc/passwd")))
    assert (code, "link or a device" in message) == ("unsafe-archive", True)


def test_an_encrypted_member_is_refused(target):
    raw = bytearray(GOOD)
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 8] |= 1
    assert "encrypted" in refusal(target, bytes(raw))[1]


def test_a_method_that_needs_unbounded_memory_is_refused(target):
    assert "packed by method 14" in refusal(target, packed((EXPECTED, CSV), method=zipfile.ZIP_LZMA))[1]


def test_a_member_that_unpacks_to_a_thousand_times_its_size_is_refused(target):
    code, message = refusal(target, packed((EXPECTED, b"0" * (8 << 20))))
    assert (code, "more than 200 times" in message) == ("too-large", True)


def test_a_declared_size_above_the_limit_is_refused_before_reading(target, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    code, message = refusal(target, packed((EXPECTED, bytes(range(256)) * 8192), method=zipfile.ZIP_STORED))
    assert (code, "more than 1 MiB" in message) == ("too-large", True)
    plain = target.with_suffix(".csv")
    plain.write_bytes(b"0" * ((1 << 20) + 1))
    with pytest.raises(DataError, match="larger than 1 MiB"):
        read_published(plain, "x")


def test_a_member_that_declares_less_than_it_holds_is_refused(target):
    raw = bytearray(packed((EXPECTED, b"0" * (1 << 20))))
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 24 : directory + 28] = struct.pack("<L", 1000)
    assert refusal(target, bytes(raw))[0] == "damaged-file"


def test_a_directory_that_would_fill_the_memory_is_refused(target):
    raw = bytearray(GOOD)
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 12 : end + 16] = struct.pack("<L", 1 << 30)
    assert refusal(target, bytes(raw))[0] == "unsafe-archive"


def test_a_member_that_the_end_of_the_directory_hides_is_found(target):
    raw = bytearray(packed((EXPECTED, CSV), ("../evil", b"x")))
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 8 : end + 12] = struct.pack("<HH", 1, 1)
    code, message = refusal(target, bytes(raw))
    assert (code, "found 2 members" in message) == ("unsafe-archive", True)


def test_a_local_name_that_differs_from_the_directory_is_refused(target):
    raw = bytearray(GOOD)
    local = raw.index(b"PK\x03\x04")
    raw[local + 30 : local + 33] = b"../"
    code, message = refusal(target, bytes(raw))
    assert (code, "File name in directory" in message) == ("damaged-file", True)


def test_a_packed_size_that_is_made_up_does_not_pass_the_ratio(target):
    raw = bytearray(packed((EXPECTED, b"0" * (64 << 20))))
    for start, offset in ((raw.index(b"PK\x03\x04"), 18), (raw.index(b"PK\x01\x02"), 20)):
        raw[start + offset : start + offset + 4] = struct.pack("<L", 16 << 20)
    assert refusal(target, bytes(raw))[0] == "damaged-file"


def test_an_end_record_inside_a_comment_does_not_hide_the_real_one(target):
    end = GOOD.rindex(b"PK\x05\x06")
    fake = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 60, 0, 0)
    raw = GOOD[: end + 20] + struct.pack("<H", len(fake)) + fake
    assert refusal(target, raw)[0] == "damaged-file"


def test_zip64_is_refused(target):
    end = GOOD.rindex(b"PK\x05\x06")
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 1)
    assert "zip64" in refusal(target, GOOD[:end] + locator + GOOD[end:])[1]


@pytest.mark.parametrize("raw", [b"", b"PK", b"<html>404</html>", GOOD[:-30], GOOD[: len(GOOD) // 2]])
def test_a_truncated_or_foreign_file_is_told(target, raw):
    assert refusal(target, raw)[0] == "damaged-file"


def test_a_flipped_byte_of_the_content_is_told(target):
    raw = bytearray(GOOD)
    raw[60] ^= 0xFF
    assert refusal(target, bytes(raw))[0] == "damaged-file"


def test_a_checksum_beside_the_file_is_verified(target):
    target.write_bytes(GOOD)
    beside = target.with_name(f"{target.name}.CHECKSUM")
    beside.write_text(f"{hashlib.sha256(GOOD).hexdigest()}  {target.name}\n", encoding="ascii")
    assert read_published(target, "x") == CSV
    for text, message in (
        (f"{'0' * 64}  {target.name}\n", "says 000000000000"),
        ("<html>", "holds no sha256"),
    ):
        beside.write_text(text, encoding="ascii")
        with pytest.raises(DataError, match=message) as caught:
            read_published(target, "x")
        assert caught.value.problems[0].code == "checksum-mismatch"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(max_size=40), st.text("./\\C:X-fundingRate2401cs\0v ", max_size=40)))
def test_no_member_name_but_the_expected_one_is_ever_read(target, name):
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    try:
        raw = packed((info, CSV))
    except (UnicodeEncodeError, ValueError):
        return
    target.write_bytes(raw)
    if name == EXPECTED:
        assert read_published(target, "x") == CSV
        return
    with pytest.raises(DataError, match=r"^x: "):
        read_published(target, "x")
    assert list(target.parent.iterdir()) == [target]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.just(len(GOOD)), st.integers(0, len(GOOD))),
)
def test_damaged_bytes_give_the_same_content_or_an_error_and_nothing_else(target, edits, cut):
    raw = bytearray(GOOD)
    for position, value in edits:
        raw[position] = value
    target.write_bytes(bytes(raw[:cut]))
    try:
        found = read_published(target, "x")
    except DataError as error:
        code, found = error.problems[0].code, CSV
    else:
        code = "read"
    assert found == CSV
    assert code in ("read", "damaged-file", "unsafe-archive", "too-large")

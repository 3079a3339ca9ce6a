"""Names of scans, and the rows of tables that belong to them."""

import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

from utils.data.columns import is_formula, session_of
from utils.data.subjects import person_of

VERSION = re.compile(
    r"_(?:space|cohort|res|den|desc)-[A-Za-z0-9+]+"
)  # of BIDS: how a scan was derived, not which it is
# Where names hold the session: BIDS; the instance of UK Biobank (1000011_20252_2_0); the visit of HCP-Aging and
# HCP-Development (HCA6002236_V1_MR).
SESSION = re.compile(r"_ses-([A-Za-z0-9]+)|(?<=^\d{7})_\d{4,6}_(\d)_\d+(?=_|$)|(?<=^HC[AD]\d{7})_(V\d)(?:_MR)?(?=_|$)")


def subject_id_of(file_name: str) -> str:
    """Return a file's name without folder and the extension of an image.

    >>> subject_id_of("data/sub-0001.nii.gz")
    'sub-0001'
    """
    return re.sub(r"(?i)\.(nii(\.gz)?|mg[zh])$", "", file_name.replace("\\", "/").rsplit("/", 1)[-1].strip())


def scan_name(file_name: str) -> str:
    """Return the name of a scan: that of its file or folder, without what does not tell which scan it is.

    >>> scan_name("sub-01_ses-2_T1w.nii.gz"), scan_name("sub-01_T1w.anat")
    ('sub-01_ses-2', 'sub-01')
    >>> scan_name("sub-01_run-1_space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w.nii.gz")
    'sub-01_run-1'
    """
    name = subject_id_of(file_name).removesuffix(".anat").removesuffix("_T1w")
    return VERSION.sub("", name) if name.startswith("sub-") else name


def unusable_name(name: str) -> str:
    """Return what is wrong with the name of a scan, person or site; empty if nothing is.

    Names are written into tables, which people open in spreadsheet programs.
    """
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        return f"the name {name!r} contains control characters; rename it"
    if re.search(r"[\ud800-\udfff]", name):  # what Python makes of other bytes
        return f"the name {name!r} is not UTF-8; rename it"
    return f"a spreadsheet program would run the name '{name}' as a formula; rename it" if is_formula(name) else ""


class Found(NamedTuple):
    """The rows of a scan, by number.

    Parameters
    ----------
    own : list of int
        Of this very scan, or of the person if the table has no sessions of
        the person. More than one: duplicates.
    shared : list of int
        Of the person, without session, beside rows with sessions: what they
        say is constant, and no age.
    """

    own: list[int]
    shared: list[int]


class RowIndex:
    """Find the rows of scans in a table.

    A row with a session belongs to the scans of that session alone. The
    session stands in a column, or in the row's name (``sub-01_ses-2``). A scan
    belongs to the row of its exact name, else to that of person and session,
    else to that of the person. ``sub-01`` and ``01`` are the same name.

    Parameters
    ----------
    subject_ids, sessions : sequences of N str
        Sessions are empty where a row has none, or a table no such column.
    """

    def __init__(self, subject_ids: Iterable[str], sessions: Iterable[str] = ()) -> None:
        self.rows: dict[str, dict[str, list[int]]] = {}  # by name without session, by session
        self.joined: dict[str, set[tuple[str, str]]] = {}  # names and sessions, by both in one
        for number, (subject_id, session) in enumerate(zip_longest(subject_ids, sessions, fillvalue="")):
            name, own = name_and_session(subject_id)
            session = session_of(session)
            for one in {session, own} - {""} or {""}:  # two only where they contradict each other
                self.rows.setdefault(name, {}).setdefault(one, []).append(number)
            if session and not own:  # P001 with the session V2 is P001_V2, too, if no row has that name
                self.joined.setdefault(f"{name}_{session}", set()).add((name, session))

    def find(self, file_name: str, session: str = "") -> Found:
        """Return the rows of a scan, by the name of its file, and its session if another table tells that."""
        names = names_of_scan(file_name)
        pairs = [name_and_session(name) for name in names]
        session = session_of(session) or pairs[1][1]
        joined = self.joined.get(pairs[1][0], set())
        if len(joined) == 1 and not session and pairs[1][0] not in self.rows:
            pairs = list(joined)
            session = pairs[0][1]
        of_names = [self.rows[name] for name, _ in pairs if name in self.rows]
        shared = next((rows[""] for rows in of_names if "" in rows), [])
        own = next((rows[session] for rows in of_names if session in rows), [])
        if not own:
            # A name without session is that of the only session; a row without session is that of all.
            alone = [next(iter(rows.values())) for rows in of_names if len(rows) == 1]
            own = next((rows for rows in alone if not session or rows is shared), [])
        return Found(own, [] if own is shared else shared)

    def sessions_of(self, file_name: str) -> list[str]:
        """Return the sessions that the table has of a scan's person."""
        names = [name for name, _ in map(name_and_session, names_of_scan(file_name))]
        return sorted({session for name in names for session in self.rows.get(name, ()) if session})


def names_of_scan(file_name: str) -> list[str]:
    """Return the names that the row of a scan may have: those of the file, and the person's.

    >>> names_of_scan("sub-01_ses-2_T1w.nii.gz")
    ['sub-01_ses-2_T1w', 'sub-01_ses-2', 'sub-01_ses-2_T1w', 'sub-01']
    """
    name = scan_name(file_name)
    return [subject_id_of(file_name), name, f"{name}_T1w", person_of(name)]


def name_and_session(subject_id: str) -> tuple[str, str]:
    """Divide a name into what is compared between tables, and the session.

    >>> name_and_session("sub-01_ses-02_run-1"), name_and_session("x/01.nii.gz"), name_and_session("1000011_20252_2_0")
    (('01_run-1', '2'), ('01', ''), ('1000011', '2'))
    """
    name = subject_id_of(subject_id).removeprefix("sub-")
    found = SESSION.search(name)
    return (name.replace(found[0], "", 1), session_of(next(filter(None, found.groups())))) if found else (name, "")


def person_in_row(subject_id: str, session: str, name: str) -> str:
    """Return the person of a scan, from the subject id and the session of its row.

    >>> person_in_row("P001", "V2", "P001_V2"), person_in_row("01", "", "sub-01"), person_in_row("P1_V2", "V2", "P1_V2")
    ('P001', 'sub-01', 'P1')
    """
    person = person_of(name)
    if not session or person != name:
        return person
    return subject_id if session.isdigit() else subject_id.removesuffix(f"_{session}")

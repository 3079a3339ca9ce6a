"""Tables of UK Biobank, ABIDE, HCP and NACC, in the forms of their documentation with made-up rows."""

import numpy as np
import pytest

from tests.data.test_persons import as_predicted, as_prepared, as_trained, made
from utils.common.errors import InputError
from utils.data.tables import read_label_table
from utils.preparation.labelling import label_scans

SCANS = ["1000011_20252_2_0", "1000011_20252_3_0", "1000022_20252_2_0"]
UK_BIOBANK = {
    "Research Analysis Platform": (
        "eid,p31,p21003_i0,p21003_i2,p21003_i3,p54_i2,p54_i3\n"
        "1000011,Male,50,61,65,11025,11026\n1000022,Female,60,70,,11027,\n"
    ),
    "with the name of the entity": "participant.eid,participant.p31,participant.p21003_i2,participant.p21003_i3\n"
    "1000011,1,61,65\n1000022,0,70,\n",
    "with titles": "Participant ID,Sex,Age when attended assessment centre | Instance 2,"
    "Age when attended assessment centre | Instance 3\n1000011,Male,61,65\n1000022,Female,70,\n",
    "ukbconv csv": "eid,31-0.0,21003-0.0,21003-2.0,21003-3.0\n1000011,1,50,61,65\n1000022,0,60,70,\n",
    "ukbconv r": "f.eid\tf.31.0.0\tf.21003.0.0\tf.21003.2.0\tf.21003.3.0\n1000011\t1\t50\t61\t65\n1000022\t0\t60\t70\t\n",
}


@pytest.mark.parametrize("read", [as_trained, as_predicted, as_prepared])
@pytest.mark.parametrize("form", UK_BIOBANK)
def test_uk_biobank_gives_person_age_at_the_instance_and_sex(tmp_path, form, read) -> None:
    scans, table = made(tmp_path, SCANS, UK_BIOBANK[form])
    assert read(scans, table) == {
        "1000011_20252_2_0": ("1000011", 61, 1), "1000011_20252_3_0": ("1000011", 65, 1),
        "1000022_20252_2_0": ("1000022", 70, 0),
    }  # fmt: skip


def test_bids_names_of_uk_biobank_find_the_same_rows(tmp_path) -> None:
    scans, table = made(tmp_path, ["sub-1000011_ses-3"], UK_BIOBANK["Research Analysis Platform"])
    assert as_trained(scans, table) == {"sub-1000011_ses-3": ("sub-1000011", 65, 1)}


def test_an_instance_without_an_age_takes_none_of_another(tmp_path) -> None:
    scans, table = made(tmp_path, ["1000022_20252_3_0"], UK_BIOBANK["ukbconv csv"])
    with pytest.raises(InputError, match="rows for the session 2 of 1000022, and none for 3"):
        as_trained(scans, table)
    assert np.isnan(as_predicted(scans, table)["1000022_20252_3_0"][1])


def test_fields_of_the_instance_may_be_the_site(tmp_path) -> None:
    scans, table = made(tmp_path, SCANS, UK_BIOBANK["Research Analysis Platform"])
    found = label_scans({name: scans / f"{name}.nii.gz" for name in SCANS}, table, site_column="p54")
    assert [scan.site for scan in found] == ["11025", "11026", "11027"]
    assert [row.site for row in read_label_table(table, "p54").rows] == ["11025", "11026", "11027"]


def test_ages_of_visits_without_a_scanner_are_refused(tmp_path) -> None:
    _, table = made(tmp_path, [], "eid,p31,p21003_i0\n1000011,Male,50\n")
    with pytest.raises(InputError, match="without the age at an imaging visit; add the field 21003"):
        read_label_table(table)


OTHERS = {
    "ABIDE I": (
        "SITE_ID,SUB_ID,DX_GROUP,DSM_IV_TR,AGE_AT_SCAN,SEX\nPITT,50003,1,1,24.5,1\nNYU,51000,2,0,30,2\n",
        {"sub-0050003_T1w": ("sub-0050003", 24.5, 1), "NYU_0051000": ("0051000", 30, 0)},
    ),
    "ABIDE II": (
        "SITE_ID,SUB_ID,NDAR_GUID,DX_GROUP,AGE_AT_SCAN ,SEX\nABIDEII-EMC_1,28675,,1,7.5,1\nABIDEII-EMC_1,28676,,2,8,2\n",
        {"sub-28675_T1w": ("sub-28675", 7.5, 1)},
    ),
    "HCP-Aging": (
        '"subjectkey"\t"src_subject_id"\t"interview_date"\t"interview_age"\t"sex"\n'
        '"The NDAR identifier"\t"Subject ID in the lab"\t"Date"\t"Age in months"\t"Sex of subject at birth"\n'
        '"NDAR_A"\t"HCA6002236"\t"01/01/2017"\t"702"\t"F"\n"NDAR_B"\t"HCA7000000"\t"01/01/2017"\t"1200"\t"M"\n',
        {"HCA6002236_V1_MR": ("HCA6002236", 58.5, 0), "HCA7000000_V1_MR": ("HCA7000000", np.nan, 1)},
    ),
    "HCP-Development": (
        "src_subject_id,interview_age,sex\nHCD0001305,126,M\n", {"HCD0001305_V1_MR": ("HCD0001305", 10.5, 1)}
    ),
    "NACC": (
        "NACCID,NACCADC,NACCVNUM,NACCAGE,SEX\nNACC000123,1,1,70,2\nNACC000123,1,2,72,2\nNACC000124,1,1,66,1\n",
        {"NACC000123_ses-2": ("NACC000123", 72, 0), "NACC000124": ("NACC000124", 66, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", OTHERS)
def test_other_public_tables_give_person_age_and_sex(tmp_path, form) -> None:
    text, expected = OTHERS[form]
    scans, table = made(tmp_path, expected, text)
    found = as_predicted(scans, table)
    assert {name: found[name][::2] for name in found} == {name: row[::2] for name, row in expected.items()}
    np.testing.assert_equal([found[name][1] for name in expected], [row[1] for row in expected.values()])
    known = {name: row for name, row in expected.items() if np.isfinite(row[1])}
    for name in set(expected) - set(known):
        (scans / f"{name}.nii.gz").unlink()
    assert as_prepared(scans, table) == known

"""Tables in the forms of the public data sets."""

import numpy as np
import pandas as pd
import pytest

from utils.common.errors import InputError
from utils.preparation.label_formats import open_labels

TABLES = {
    "IXI": (
        "IXI.xls",
        [
            ["IXI_ID", "SEX_ID (1=m, 2=f)", "HEIGHT", "DOB", "STUDY_DATE", "AGE"],
            [2, 2, 164, "1970-01-31", "2005-11-18", 35.8],
            [12, 1, 175, "1966-08-20", "2005-06-01", 38.78],
            [12, 1, 175, "1966-08-20", "2005-06-01", 38.78],
            [16, 2, 170, "1950-01-01", "", ""],
            [20, 1, 170, "1950-01-01", "2005-06-01", 40],
            [20, 1, 170, "1950-01-01", "2005-06-01", 61],
        ],
        {
            "IXI002-Guys-0828-T1": ("IXI002", 35.8, 0), "IXI012-HH-1211": ("IXI012", 38.78, 1),
            "IXI016-Guys-0697": ("IXI016", np.nan, 0), "IXI020-Guys-0700": "different ages", "IXI999-HH-1": "no row",
        },
    ),
    "OASIS-1": (
        "oasis_cross-sectional.csv",
        [
            ["ID", "M/F", "Hand", "Age", "Educ", "SES", "MMSE", "CDR", "eTIV", "nWBV", "ASF", "Delay"],
            ["OAS1_0001_MR1", "F", "R", 74, 2, 3, 29, 0, 1344, 0.743, 1.306, "N/A"],
            ["OAS1_0061_MR1", "F", "R", 20, "", "", "", "", 1372, 0.82, 1.28, ""],
            ["OAS1_0061_MR2", "F", "R", 20, "", "", "", "", 1372, 0.82, 1.28, 89],
        ],
        {
            "OAS1_0001_MR1_mpr_n4_anon_111": ("OAS1_0001", 74, 0), "OAS1_0061_MR2": ("OAS1_0061", 20, 0),
            "sub-OAS10001_ses-MR1": ("OAS1_0001", 74, 0), "OAS1_0002_MR1": "no row",
        },
    ),
    "OASIS-2": (
        "oasis_longitudinal.csv",
        [
            ["Subject ID", "MRI ID", "Group", "Visit", "MR Delay", "M/F", "Hand", "Age", "EDUC"],
            ["OAS2_0001", "OAS2_0001_MR1", "Nondemented", 1, 0, "M", "R", 87, 14],
            ["OAS2_0001", "OAS2_0001_MR2", "Nondemented", 2, 457, "M", "R", 88, 14],
        ],
        {"OAS2_0001_MR1": ("OAS2_0001", 87, 1), "OAS2_0001_MR2_mpr-1": ("OAS2_0001", 88, 1), "OAS2_0009_MR1": "no row"},
    ),
    "OASIS-3 demographics": (
        "OASIS3_demographics.csv",
        [["OASISID", "Subject_accession", "AgeatEntry", "AgeatDeath", "GENDER"], ["OAS30001", "X", 65.15, "", 2], ["OAS30002", "X", 67.25, "", 1]],
        {
            "OAS30001_MR_d0129": ("OAS30001", 65.15 + 129 / 365.25, 0),
            "sub-OAS30002_ses-d2345": ("OAS30002", 67.25 + 2345 / 365.25, 1),
            "OAS30002_MR_d10234": ("OAS30002", 67.25 + 10234 / 365.25, 1),
            "sub-OAS30002_sess-d0653": ("OAS30002", 67.25 + 653 / 365.25, 1),
            "OAS30001": "does not name person and day", "OAS30003_MR_d0001": "no row",
        },
    ),
    "OASIS-3 sessions": (
        "mr_sessions.csv",
        [["MR ID", "Subject", "M/F", "Age", "Scanner"], ["OAS30001_MR_d0129", "OAS30001", "F", 65.5, "3.0T"], ["OAS30001_MR_d0757", "OAS30001", "F", 67.2, "3.0T"]],
        {"OAS30001_MR_d0757": ("OAS30001", 67.2, 0), "sub-OAS30001_ses-d0129": ("OAS30001", 65.5, 0), "OAS30001_MR_d0001": "no row for day 1"},
    ),
    "ADNI": (
        "ADNIMERGE.csv",
        [
            ["RID", "PTID", "VISCODE", "SITE", "EXAMDATE", "DX_bl", "AGE", "PTGENDER", "Years_bl", "DX"],
            [295, "002_S_0295", "bl", 2, "2006-04-18", "CN", 84.8, "Male", 0, "CN"],
            [295, "002_S_0295", "m12", 2, "2007-05-25", "CN", 84.8, "Male", 1.1, "CN"],
            [413, "002_S_0413", "bl", 2, "2006-05-19", "LMCI", 76.3, "Female", 0, "MCI"],
        ],
        {
            "002_S_0295_bl": ("002_S_0295", 84.8, 1), "sub-ADNI002S0295_ses-M12": ("002_S_0295", 85.9, 1),
            "sub-ADNI002S0295_ses-M00": ("002_S_0295", 84.8, 1), "002_S_0413": ("002_S_0413", 76.3, 0),
            "ADNI_002_S_0295_MR_MPR_Br_20070601113623975_S13408": ("002_S_0295", 85.9 + 7 / 365.25, 1),
            "sub-ADNI002S0295_ses-20070601": ("002_S_0295", 85.9 + 7 / 365.25, 1),
            "ADNI_002_S_0295_MR_MPR_Br_20110601113623975_S13408": "within 183 days",
            "002_S_0295": "neither visit", "002_S_0295_m24": "visit m24", "002_S_1111_bl": "no row",
        },
    ),
    "Cam-CAN": (
        "participant_data.csv",
        [["Observations", "age", "hand", "gender_code", "tiv_cubicmm"], ["CC110033", 24, 60, 1, 1], ["CC110037", 18, 100, 2, 1]],
        {"sub-CC110033_T1w": ("sub-CC110033", 24, 1), "CC110037": ("CC110037", 18, 0), "sub-CC1100": "no row"},
    ),
    "Cam-CAN in BIDS": (
        "participants.tsv",
        [["participant_id", "age", "hand", "gender_code"], ["sub-CC110033", 24, 60, 1], ["sub-CC110037", 18, 100, 2]],
        {"sub-CC110033_T1w": ("sub-CC110033", 24, 1), "sub-CC110037": ("sub-CC110037", 18, 0)},
    ),
    "BIDS": (
        "participants.tsv",
        [["participant_id", "age", "sex", "site"], ["sub-1", 30.5, "F", "A"], ["sub-10", 60, "male", "B"], ["sub-11", "n/a", "M", "B"]],
        {"sub-1_ses-2": ("sub-1", 30.5, 0), "sub-10": ("sub-10", 60, 1), "sub-11_run-1": ("sub-11", np.nan, 1), "sub-100": "no row"},
    ),
    "BIDS with sessions": (
        "participants.tsv",
        [["participant_id", "session_id", "age", "sex"], ["sub-1", "ses-a", 30, "F"], ["sub-1", "ses-b", 34, "F"]],
        {"sub-1_ses-b": ("sub-1", 34, 0), "sub-1_ses-c": "no row"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", TABLES)
def test_each_form_is_recognized_and_read(form, tmp_path) -> None:
    file, rows, expected = TABLES[form]
    path = tmp_path / file
    if file.endswith(".xls"):
        import xlwt

        book = xlwt.Workbook()
        sheet = book.add_sheet("Table")
        for i, row in enumerate(rows):
            for j, cell in enumerate(row):
                sheet.write(i, j, cell)
        book.save(str(path))
    else:
        pd.DataFrame(rows).to_csv(path, sep="\t" if file.endswith("tsv") else ",", index=False, header=False)
    name, find, _ = open_labels(path)
    assert form.startswith(name)
    for scan, wanted in expected.items():
        label = find(scan)
        if isinstance(wanted, str):
            assert isinstance(label, str), scan
            assert wanted in label, scan
        else:
            assert not isinstance(label, str), label
            assert (label.person, label.sex) == (wanted[0], wanted[2]), scan
            np.testing.assert_allclose(label.age, wanted[1], atol=1e-9, err_msg=scan)


@pytest.mark.parametrize(
    ("text", "complaint"), [("a,b\n1,2\n", "are of no known form"), ("subject_id,age\n", "no rows")]
)
def test_other_tables_are_refused(text, complaint, tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        open_labels(path)

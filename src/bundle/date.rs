//! The date that a bundle may have.

use crate::error::{Code, Error, Result};

/// The date that `SOURCE_DATE_EPOCH` asks for, as `2026-01-31`; without it a bundle has none.
///
/// # Errors
///
/// [`Code::Usage`] for a text that is no number of seconds. Source: reproducible-builds.org.
pub fn source_date(epoch: Option<&str>) -> Result<Option<String>> {
    let Some(text) = epoch.filter(|t| !t.is_empty()) else { return Ok(None) };
    // Up to the year 9999.
    let seconds = text.parse::<u64>().ok().filter(|s| *s < 253_402_300_800).ok_or_else(|| {
        let message = format!("expected seconds since 1970 of at most four-digit years, found {text:?}");
        Error::new(Code::Usage, message).field("SOURCE_DATE_EPOCH")
    })?;
    // Days since 0000-03-01, in eras of 400 years: a year that begins in March has its leap day at the end.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Ok(Some(format!("{year:04}-{month:02}-{day:02}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |text: &str| source_date(Some(text)).unwrap().unwrap();
        // `date -u -d @SECONDS +%F`
        for (seconds, expected) in [
            ("0", "1970-01-01"),
            ("951782399", "2000-02-28"),
            ("951782400", "2000-02-29"),
            ("951868800", "2000-03-01"),
            ("1709164800", "2024-02-29"),
            ("1735689599", "2024-12-31"),
            ("4107542400", "2100-03-01"),
            ("253402300799", "9999-12-31"),
        ] {
            assert_eq!(date(seconds), expected);
        }
        assert_eq!(source_date(None).unwrap(), None);
        for bad in ["x", "-1", "1.5", "253402300800"] {
            assert_eq!(source_date(Some(bad)).unwrap_err().code(), Code::Usage, "{bad}");
        }
    }
}

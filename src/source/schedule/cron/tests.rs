use jiff::Span;
use proptest::prelude::*;

use super::*;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_second()
}

/// The first ticks after a time, as that zone's clock shows them.
fn ticks(cron: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
    let (cron, zone) = (CronExpression::parse(cron).unwrap(), zone(zone_name));
    let mut after_s = at(after);
    let mut found = Vec::new();
    for _ in 0..count {
        after_s = cron.next_after(after_s, &zone).unwrap();
        let time = timestamp(after_s).unwrap().to_zoned(zone.clone());
        found.push(time.strftime("%m-%d %H:%M:%S %:z").to_string());
    }
    found
}

#[test]
fn a_fixed_time_in_the_gap_runs_once_at_the_first_instant_after_it() {
    // Berlin, 29 March 2026: 02:00 becomes 03:00.
    let found = ticks("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
    assert_eq!(found, ["03-28 02:30:00 +01:00", "03-29 03:00:00 +02:00", "03-30 02:30:00 +02:00"]);
    let found = ticks("10,50 2,3 * * *", "Europe/Berlin", "2026-03-28T23:00:00Z", 3);
    assert_eq!(found, ["03-29 03:00:00 +02:00", "03-29 03:10:00 +02:00", "03-29 03:50:00 +02:00"]);
    // A gap of a whole day: Samoa had no 30 December 2011.
    let found = ticks("0 9 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 3);
    assert_eq!(found, ["12-29 09:00:00 -10:00", "12-31 00:00:00 +14:00", "12-31 09:00:00 +14:00"]);
}

#[test]
fn a_fixed_time_in_the_overlap_runs_the_first_time_only() {
    // Berlin, 25 October 2026: 03:00 becomes 02:00.
    let found = ticks("30 2 * * *", "Europe/Berlin", "2026-10-24T00:00:00Z", 3);
    assert_eq!(found, ["10-24 02:30:00 +02:00", "10-25 02:30:00 +02:00", "10-26 02:30:00 +01:00"]);
    let found = ticks("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", 1);
    assert_eq!(found, ["10-26 02:30:00 +01:00"]);
    let found = ticks("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1);
    assert_eq!(found, ["10-26 02:30:00 +01:00"], "also when asked from inside the second half");
}

#[test]
fn an_interval_keeps_its_pace_through_gap_and_overlap() {
    let found = ticks("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
    assert_eq!(found, ["03-29 01:30:00 +01:00", "03-29 03:00:00 +02:00", "03-29 03:30:00 +02:00"]);
    let found = ticks("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 4);
    let expected = ["10-25 02:30:00 +02:00", "10-25 02:00:00 +01:00", "10-25 02:30:00 +01:00", "10-25 03:00:00 +01:00"];
    assert_eq!(found, expected);
    let found = ticks("*/20 2 * * *", "Europe/Berlin", "2026-03-28T02:00:00Z", 1);
    assert_eq!(found, ["03-30 02:00:00 +02:00"], "an hour that there is not has no intervals");
}

#[test]
fn a_zone_that_shifts_by_half_an_hour_or_at_midnight_follows_the_same_rules() {
    let found = ticks("15 2 * * *", "Australia/Lord_Howe", "2026-10-02T20:00:00Z", 2);
    assert_eq!(found, ["10-04 02:30:00 +11:00", "10-05 02:15:00 +11:00"]);
    let found = ticks("0 0 * * *", "Africa/Cairo", "2026-04-22T23:00:00Z", 2);
    assert_eq!(found, ["04-24 01:00:00 +03:00", "04-25 00:00:00 +03:00"]);
}

#[test]
fn five_and_six_fields_names_and_the_last_nth_and_nearest_day_are_understood() {
    for (cron, expected) in [
        ("0 12 * * *", "01-01 12:00:00 +00:00"),
        ("*/20 0 12 * * *", "01-01 12:00:00 +00:00"),
        ("@hourly", "01-01 01:00:00 +00:00"),
        ("@Midnight", "01-02 00:00:00 +00:00"),
        ("0 0 L * *", "01-31 00:00:00 +00:00"),
        ("0 0 15W 2 ?", "02-16 00:00:00 +00:00"),
        ("0 0 * * FRI#2", "01-09 00:00:00 +00:00"),
        ("0 0 * * FRIL", "01-30 00:00:00 +00:00"),
        ("0 0 * feb mon-wed", "02-02 00:00:00 +00:00"),
        ("0 0 * * 7", "01-04 00:00:00 +00:00"),
        ("0 0 13 * 5", "01-02 00:00:00 +00:00"),
        ("0 0 13 * +5", "02-13 00:00:00 +00:00"),
        ("0 0 29 2 *", "02-29 00:00:00 +00:00"),
    ] {
        assert_eq!(ticks(cron, "UTC", "2026-01-01T00:00:00Z", 1), [expected], "{cron}");
    }
}

#[test]
fn an_error_names_the_field() {
    let field = |text: &str| match CronExpression::parse(text).unwrap_err() {
        CronError::Field { field, text, .. } => (field, text),
        other => panic!("{text}: {other}"),
    };
    for (text, expected) in [
        ("60 * * * *", ("minute", "60")),
        ("* 24 * * *", ("hour", "24")),
        ("* * 32 * *", ("day of month", "32")),
        ("* * 0 * *", ("day of month", "0")),
        ("* * * 13 *", ("month", "13")),
        ("* * * * 8", ("day of week", "8")),
        ("* * * * MON#6", ("day of week", "MON#6")),
        ("61 * * * * *", ("second", "61")),
        ("MON * * * *", ("minute", "MON")),
        ("* 5-1 * * *", ("hour", "5-1")),
        ("*/0 * * * *", ("minute", "*/0")),
        ("5/15 * * * *", ("minute", "5/15")),
        ("* * * * ä", ("day of week", "ä")),
        (", * * * *", ("minute", ",")),
    ] {
        assert_eq!(field(text), (expected.0, expected.1.to_owned()), "{text}");
    }
    for (text, found) in [("", 0), ("* * * *", 4), ("* * * * * * *", 7), ("@reboot", 1)] {
        assert_eq!(CronExpression::parse(text), Err(CronError::FieldCount { found }), "{text}");
    }
    let length_bytes = CRON_BYTES_MAX + 1;
    assert_eq!(CronExpression::parse(&" ".repeat(length_bytes)), Err(CronError::TooLong { length_bytes }));
}

#[test]
fn days_that_no_year_has_are_refused() {
    for text in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 +MON"] {
        assert_eq!(CronExpression::parse(text), Err(CronError::Never), "{text}");
    }
}

/// The ticks in a range by trying every second, or minute, of it.
fn by_trying(cron: &CronExpression, zone: &TimeZone, after_s: i64, upto_s: i64, step_s: i64) -> Vec<i64> {
    let matches = |civil: DateTime| cron.cron.is_time_matching(&civil).unwrap();
    let civil_at = |unix_s| zone.to_datetime(timestamp(unix_s).unwrap());
    let mut found = Vec::new();
    if cron.is_fixed() {
        // Every time on the wall, also those that are left out; a day more on both sides covers all offsets.
        let mut civil = civil_at(after_s - 2 * 86_400);
        while civil < civil_at(upto_s + 2 * 86_400) {
            if matches(civil) {
                found.extend(instant_of(civil, zone));
            }
            civil = civil.checked_add(Span::new().seconds(step_s)).unwrap();
        }
        found.sort_unstable();
        found.dedup();
    } else {
        found.extend((after_s..=upto_s).step_by(step_s as usize).filter(|&unix_s| matches(civil_at(unix_s))));
    }
    found.retain(|&tick| tick > after_s && tick <= upto_s);
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Around changes of the clock, where rules matter: what the search finds is what trying every minute finds.
    #[test]
    fn the_search_finds_what_trying_every_minute_finds(
        cron in prop::sample::select(vec![
            "*/7 * * * *", "0 * * * *", "30 1 * * *", "30 2 * * *", "0 0 * * *", "0,30 1,2,3 * * *", "15 */2 * * *",
            "*/10 1-2 * * SUN", "5 0-4 * * *", "0 3 L * *", "59 23 * * *", "* 2 * 3,10,11 *", "0 0 1 * *",
        ]),
        zone_name in prop::sample::select(vec![
            "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Africa/Cairo", "Asia/Tehran",
            "Europe/Dublin", "Africa/Casablanca", "America/Havana", "UTC", "Asia/Kolkata", "Pacific/Apia",
        ]),
        year in 2005i64..2045,
        change in 0usize..3,
        before_min in 0i64..1500,
    ) {
        let (cron, zone) = (CronExpression::parse(cron).unwrap(), zone(zone_name));
        let year_s = at("2005-01-01T00:00:00Z") + (year - 2005) * 31_556_952;
        let change_s = zone.following(timestamp(year_s).unwrap()).nth(change).map_or(year_s, |c| c.timestamp().as_second());
        let after_s = (change_s - before_min * 60).div_euclid(60) * 60;
        let upto_s = after_s + 2 * 86_400;
        let expected = by_trying(&cron, &zone, after_s, upto_s, 60);
        let mut found = Vec::new();
        let mut at_s = after_s;
        while let Some(tick) = cron.next_after(at_s, &zone).filter(|&tick| tick <= upto_s) {
            prop_assert!(tick > at_s);
            found.push(tick);
            at_s = tick;
        }
        prop_assert_eq!(found, expected, "{} {} after {}", cron, zone_name, timestamp(after_s).unwrap());
    }
}

proptest! {
    /// Whatever somebody writes is read or refused, and what is read has a tick.
    #[test]
    fn any_text_is_an_expression_with_a_tick_or_an_error(
        fields in prop::collection::vec("[-*/,0-9LW#?+]{1,5}|(MON|FRI|JAN)[-,L#]?[0-9]?", 5..=6),
    ) {
        if let Ok(cron) = CronExpression::parse(&fields.join(" ")) {
            prop_assert!(cron.next_after(0, &zone("Europe/Berlin")).is_some());
        }
    }
}

//! Names of topics, functions, triggers and groups: what may be one, checked once.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name of a topic, function or schedule, in bytes.
pub const NAME_BYTES_MAX: usize = 249;
/// The longest name of a trigger, in bytes: shorter, because its group is called `trigger.<name>`.
pub const TRIGGER_NAME_BYTES_MAX: usize = 200;
/// The longest group, client or transactional id, in bytes.
pub const GROUP_ID_BYTES_MAX: usize = 249;
/// What the names of the broker's own topics start with.
pub const INTERNAL_PREFIX: &str = "__tripline.";
/// What the names of the functions that the broker makes itself start with, such as that behind a trigger's URL.
pub const INTERNAL_FUNCTION_PREFIX: &str = "__";
/// What the ids of the triggers' groups start with.
pub const TRIGGER_GROUP_PREFIX: &str = "trigger.";

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("it is empty")]
    Empty,
    /// It is `.` or `..`, which are folders.
    #[error("`.` and `..` are not names")]
    Dots,
    /// It has too many bytes.
    #[error("it has {length_bytes} bytes, at most {max_bytes} are allowed")]
    TooLong {
        /// How long it is.
        length_bytes: usize,
        /// How long it may be.
        max_bytes: usize,
    },
    /// It has a character that names cannot have.
    #[error("the character {character:?} is not allowed")]
    Character {
        /// The first such character.
        character: char,
    },
}

/// What a name may look like, as error messages say it.
#[must_use]
pub fn allowed_name(max_bytes: usize) -> String {
    format!("1 to {max_bytes} of the characters A-Z a-z 0-9 . _ - (but not `.` or `..`)")
}

fn check_name(name: &str, max_bytes: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > max_bytes {
        return Err(NameError::TooLong { length_bytes: name.len(), max_bytes });
    }
    if name == "." || name == ".." {
        return Err(NameError::Dots);
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(()),
    }
}

fn check_group_id(id: &str) -> Result<(), NameError> {
    if id.is_empty() {
        return Err(NameError::Empty);
    }
    if id.len() > GROUP_ID_BYTES_MAX {
        return Err(NameError::TooLong { length_bytes: id.len(), max_bytes: GROUP_ID_BYTES_MAX });
    }
    match id.chars().find(|c| c.is_control()) {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text`.
            ///
            /// # Errors
            /// What is wrong with it.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(&text)?;
                Ok(Self(text))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name_type! {
    /// A topic's name: `[A-Za-z0-9._-]{1,249}`, not `.` or `..`.
    TopicName, |text| check_name(text, NAME_BYTES_MAX)
}
name_type! {
    /// A function's name: `[A-Za-z0-9._-]{1,249}`, not `.` or `..`.
    FunctionName, |text| check_name(text, NAME_BYTES_MAX)
}
name_type! {
    /// A trigger's name: `[A-Za-z0-9._-]{1,200}`, not `.` or `..`.
    TriggerName, |text| check_name(text, TRIGGER_NAME_BYTES_MAX)
}
name_type! {
    /// A schedule's name: `[A-Za-z0-9._-]{1,249}`, not `.` or `..`.
    ScheduleName, |text| check_name(text, NAME_BYTES_MAX)
}
name_type! {
    /// The name that the settings give to a cluster: `[A-Za-z0-9._-]{1,249}`, not `.` or `..`.
    ClusterName, |text| check_name(text, NAME_BYTES_MAX)
}
name_type! {
    /// A group's id (client and transactional ids follow the same rule): UTF-8, 1–249 bytes, no control characters.
    /// Never part of a path.
    GroupId, check_group_id
}

impl TopicName {
    /// Whether the topic is one of the broker's own, which nobody else may create.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.0.starts_with(INTERNAL_PREFIX)
    }
}

impl FunctionName {
    /// Whether the function is one of the broker's own, which nobody else may deploy or delete.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.0.starts_with(INTERNAL_FUNCTION_PREFIX)
    }
}

impl TriggerName {
    /// The group under which Kafka tools see the trigger's progress.
    #[must_use]
    pub fn group_id(&self) -> GroupId {
        GroupId(format!("{TRIGGER_GROUP_PREFIX}{}", self.0))
    }
}

impl GroupId {
    /// Whether the id is reserved for triggers.
    #[must_use]
    pub fn is_trigger(&self) -> bool {
        self.0.starts_with(TRIGGER_GROUP_PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_letters_digits_dots_dashes_and_underscores() {
        for good in ["a", "Z9", "flights.dlq", "__tripline.traces", "...", "a_b-c", &"x".repeat(249)] {
            assert_eq!(TopicName::new(good).unwrap().as_str(), good);
        }
        assert_eq!(TopicName::new(""), Err(NameError::Empty));
        assert_eq!(TopicName::new("."), Err(NameError::Dots));
        assert_eq!(FunctionName::new(".."), Err(NameError::Dots));
        assert_eq!(TopicName::new("x".repeat(250)), Err(NameError::TooLong { length_bytes: 250, max_bytes: 249 }));
        for bad in ["a/b", "a b", "a\0", "ä", "a\n"] {
            assert!(matches!(TopicName::new(bad), Err(NameError::Character { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_trigger_name_leaves_room_for_its_group() {
        let longest = TriggerName::new("t".repeat(200)).unwrap();
        assert_eq!(GroupId::new(longest.group_id().as_str()).unwrap(), longest.group_id());
        assert!(longest.group_id().is_trigger());
        assert_eq!(TriggerName::new("t".repeat(201)), Err(NameError::TooLong { length_bytes: 201, max_bytes: 200 }));
    }

    #[test]
    fn a_group_id_is_any_text_without_control_characters() {
        assert!(GroupId::new("Gruppe Ä/1 🚀").is_ok());
        assert!(GroupId::new("ä".repeat(124)).is_ok());
        assert_eq!(GroupId::new("ä".repeat(125)), Err(NameError::TooLong { length_bytes: 250, max_bytes: 249 }));
        assert_eq!(GroupId::new(""), Err(NameError::Empty));
        assert_eq!(GroupId::new("a\u{85}"), Err(NameError::Character { character: '\u{85}' }));
    }

    #[test]
    fn a_stored_name_is_checked_when_it_is_read_back() {
        assert!(serde_json::from_str::<TopicName>("\"a/b\"").is_err());
        assert_eq!(serde_json::to_string(&TopicName::new("a").unwrap()).unwrap(), "\"a\"");
    }

    #[test]
    fn own_topics_are_told_by_their_prefix() {
        assert!(TopicName::new("__tripline.traces").unwrap().is_internal());
        assert!(!TopicName::new("__triplineX").unwrap().is_internal());
    }

    #[test]
    fn own_functions_are_told_by_their_prefix() {
        assert!(FunctionName::new("__trigger.t").unwrap().is_internal());
        assert!(!FunctionName::new("_t").unwrap().is_internal());
    }
}

//! Names: of groups, of members, of instances.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Longest group or instance id in bytes.
pub const ID_BYTES_MAX: usize = 249;
/// Groups whose id begins so belong to triggers.
pub const TRIGGER_PREFIX: &str = "trigger.";

/// An id that breaks the rules.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// Empty or too long.
    #[error("{what} of {length_bytes} bytes: 1 to {ID_BYTES_MAX} are allowed")]
    Length {
        /// Which id.
        what: &'static str,
        /// Its length.
        length_bytes: usize,
    },
    /// A control character, which would end up in logs and terminals.
    #[error("{what} with the control character {character:?}")]
    Control {
        /// Which id.
        what: &'static str,
        /// The first one.
        character: char,
    },
}

fn check(what: &'static str, id: &str) -> Result<(), IdError> {
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(IdError::Length { what, length_bytes: id.len() });
    }
    match id.chars().find(|character| character.is_control()) {
        Some(character) => Err(IdError::Control { what, character }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// As written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, formatter)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id! {
    /// The name of a group: UTF-8, 1–249 bytes, no control characters.
    GroupId
}
id! {
    /// What the broker calls a member; made by the broker, told to the member.
    MemberId
}
id! {
    /// What a static member calls itself across restarts (`group.instance.id`): UTF-8, 1–249 bytes, no control
    /// characters.
    InstanceId
}

impl GroupId {
    /// Checks a group id.
    ///
    /// # Errors
    /// When it is empty, too long, or holds a control character.
    pub fn parse(id: &str) -> Result<Self, IdError> {
        check("group id", id).map(|()| Self(id.into()))
    }

    /// The trigger that this group belongs to, if it does.
    #[must_use]
    pub fn trigger(&self) -> Option<&str> {
        self.0.strip_prefix(TRIGGER_PREFIX)
    }
}

impl InstanceId {
    /// Checks an instance id.
    ///
    /// # Errors
    /// When it is empty, too long, or holds a control character.
    pub fn parse(id: &str) -> Result<Self, IdError> {
        check("group instance id", id).map(|()| Self(id.into()))
    }
}

impl MemberId {
    /// An id that says whose it is (client or instance) and is unique by `unique`.
    #[must_use]
    pub fn new(prefix: &str, unique: impl fmt::Display) -> Self {
        Self(format!("{prefix}-{unique}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_1_to_249_bytes_without_control_characters() {
        assert!(GroupId::parse("a").is_ok() && GroupId::parse("grüppchen 1/2").is_ok());
        assert!(GroupId::parse(&"x".repeat(249)).is_ok());
        assert_eq!(GroupId::parse(""), Err(IdError::Length { what: "group id", length_bytes: 0 }));
        assert_eq!(GroupId::parse(&"x".repeat(250)), Err(IdError::Length { what: "group id", length_bytes: 250 }));
        assert_eq!(
            InstanceId::parse("a\x1b[2J").unwrap_err().to_string(),
            "group instance id with the control character '\\u{1b}'"
        );
    }

    #[test]
    fn groups_of_triggers_are_known_by_their_prefix() {
        assert_eq!(GroupId::parse("trigger.late-flights").unwrap().trigger(), Some("late-flights"));
        assert_eq!(GroupId::parse("triggers").unwrap().trigger(), None);
    }
}

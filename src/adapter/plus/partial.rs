//! Values of which some may not be known.

/// A struct, and its form in which each field is an `Option`.
macro_rules! with_partial {
    ($(#[$meta:meta])* $whole:ident, $(#[$partial_meta:meta])* $partial:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $whole {
            $($(#[$doc])* pub $field: $type,)*
        }

        $(#[$partial_meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Default)]
        pub struct $partial {
            $($(#[$doc])* pub $field: Option<$type>,)*
        }

        impl $partial {
            /// All values, if each is known.
            pub fn all(self) -> Option<$whole> {
                Some($whole { $($field: self.$field?,)* })
            }

            /// What is known here, else what is known there.
            pub fn or(self, other: impl Into<$partial>) -> $partial {
                let other = other.into();
                $partial { $($field: self.$field.or(other.$field),)* }
            }

            /// The names of those that are not known.
            pub fn open(self) -> Vec<&'static str> {
                let open = [$(self.$field.is_none().then_some(stringify!($field)),)*];
                open.into_iter().flatten().collect()
            }
        }

        impl From<$whole> for $partial {
            fn from(whole: $whole) -> Self {
                $partial { $($field: Some(whole.$field),)* }
            }
        }
    };
}
pub(super) use with_partial;

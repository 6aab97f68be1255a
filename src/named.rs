//! Enums whose values have a name in files and on the command line.

/// An enum of [`named_enum`].
pub(crate) trait Named: Sized {
    /// Every name.
    const NAMES: &'static [&'static str];
    /// The value with this name.
    fn parse(text: &str) -> Option<Self>;
}

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// Every name.
            pub const NAMES: &'static [&'static str] = &[$($text,)*];
            /// The name in every file format.
            pub fn name(self) -> &'static str { match self { $($name::$variant => $text,)* } }
            /// The value with this name.
            pub fn parse(text: &str) -> Option<Self> { Self::ALL.iter().copied().find(|v| v.name() == text) }
        }

        impl crate::named::Named for $name {
            const NAMES: &'static [&'static str] = $name::NAMES;
            fn parse(text: &str) -> Option<Self> { $name::parse(text) }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.name()) }
        }
    };
}
pub(crate) use named_enum;

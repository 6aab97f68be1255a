//! How the numbers of an adapter are to be read: what no tensor and no base says.

use super::partial::with_partial;
use super::{FeatureMap, MemorySharing, QueryTap};

with_partial! {
    /// A value for every convention. The names are their keys in `adapter_config.json`.
    Conventions,
    /// The conventions that are stated; one that is not is *open*: nobody guesses it.
    StatedConventions {
        /// phi's activation.
        feature_map: FeatureMap,
        /// Where the query is taken from.
        query_tap: QueryTap,
        /// Factor on the query, before phi.
        query_scale: f64,
        /// Factor on the term.
        memory_scale: f64,
        /// How many memories a layer has.
        memory_sharing: MemorySharing,
    }
}

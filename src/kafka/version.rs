//! The requests that we serve, each with the versions that we serve: one table.
//!
//! A version is in the table only if each field of it is honoured. Where we stop below Kafka 4.2, the row says why.

/// A request of Kafka's that we serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "Kafka's own names")]
pub enum Api {
    Produce,
    Fetch,
    ListOffsets,
    Metadata,
    OffsetCommit,
    OffsetFetch,
    FindCoordinator,
    JoinGroup,
    Heartbeat,
    LeaveGroup,
    SyncGroup,
    DescribeGroups,
    ListGroups,
    ApiVersions,
    CreateTopics,
    DeleteTopics,
    DeleteRecords,
    InitProducerId,
    DescribeConfigs,
    DeleteGroups,
    DescribeProducers,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiSpec {
    /// Which request.
    pub api: Api,
    /// Kafka's name of it.
    pub name: &'static str,
    /// Its number on the wire.
    pub key: i16,
    /// The lowest version that we tell clients.
    pub min_advertised: i16,
    /// The lowest version that we serve.
    pub min: i16,
    /// The highest version that we serve and tell clients.
    pub max: i16,
    /// From this version on, lengths are varints and structures end in tagged fields.
    pub flexible_from: i16,
}

const fn row(api: Api, name: &'static str, key: i16, min: i16, max: i16, flexible_from: i16) -> ApiSpec {
    ApiSpec { api, name, key, min_advertised: min, min, max, flexible_from }
}

/// How many requests we serve.
pub const API_COUNT: usize = 21;

/// The table, in the order of [`Api`].
pub const APIS: [ApiSpec; API_COUNT] = [
    // Served from 3 (record batch v2), advertised from 0: librdkafka before 2.8 takes a higher minimum for a broker
    // without compression and silently sends everything uncompressed. A request below 3 is answered with
    // UNSUPPORTED_VERSION. 12 is the transactions v2 of KIP-890, which clients use only where the broker has finalised
    // `transaction.version` 2; we do not, and so it is 11 to them. 13 names topics by id.
    ApiSpec { min_advertised: 0, ..row(Api::Produce, "Produce", 0, 3, 13, 9) },
    // 17 and 18 add only fields that followers fill, and there are none. Fetch sessions (7) are declined by session id
    // 0, after which each request names all its partitions.
    row(Api::Fetch, "Fetch", 1, 4, 16, 12),
    // 0 has another shape (a list of segment offsets) and no client newer than 2017. 9 to 11 ask about tiered storage.
    row(Api::ListOffsets, "ListOffsets", 2, 1, 8, 6),
    row(Api::Metadata, "Metadata", 3, 0, 13, 9),
    // 10 of both names topics by id; committed offsets are kept by name.
    row(Api::OffsetCommit, "OffsetCommit", 8, 2, 9, 8),
    row(Api::OffsetFetch, "OffsetFetch", 9, 1, 9, 6),
    // 5 and 6 are for transactions v2 and share groups.
    row(Api::FindCoordinator, "FindCoordinator", 10, 0, 4, 3),
    row(Api::JoinGroup, "JoinGroup", 11, 0, 9, 6),
    row(Api::Heartbeat, "Heartbeat", 12, 0, 4, 4),
    row(Api::LeaveGroup, "LeaveGroup", 13, 0, 5, 4),
    row(Api::SyncGroup, "SyncGroup", 14, 0, 5, 4),
    row(Api::DescribeGroups, "DescribeGroups", 15, 0, 6, 5),
    row(Api::ListGroups, "ListGroups", 16, 0, 5, 3),
    row(Api::ApiVersions, "ApiVersions", 18, 0, 4, 3),
    row(Api::CreateTopics, "CreateTopics", 19, 2, 7, 5),
    row(Api::DeleteTopics, "DeleteTopics", 20, 1, 6, 4),
    row(Api::DeleteRecords, "DeleteRecords", 21, 0, 2, 2),
    // 6 is two-phase commit, unstable in Kafka itself.
    row(Api::InitProducerId, "InitProducerId", 22, 0, 5, 2),
    row(Api::DescribeConfigs, "DescribeConfigs", 32, 1, 4, 4),
    row(Api::DeleteGroups, "DeleteGroups", 42, 0, 2, 2),
    row(Api::DescribeProducers, "DescribeProducers", 61, 0, 0, 0),
];

impl Api {
    /// The request with this number, if we serve it.
    #[must_use]
    pub fn from_key(key: i16) -> Option<Self> {
        APIS.iter().find(|spec| spec.key == key).map(|spec| spec.api)
    }

    /// Its row of the table.
    #[must_use]
    pub const fn spec(self) -> &'static ApiSpec {
        &APIS[self as usize]
    }

    /// Whether we serve this version of it.
    #[must_use]
    pub const fn serves(self, version: i16) -> bool {
        let spec = self.spec();
        spec.min <= version && version <= spec.max
    }

    /// Whether this version has varint lengths and tagged fields.
    #[must_use]
    pub const fn is_flexible(self, version: i16) -> bool {
        version >= self.spec().flexible_from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::codec::testing::schema_versions;
    use crate::kafka::codec::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_sorted_by_key() {
        for (index, spec) in APIS.iter().enumerate() {
            assert_eq!(spec.api as usize, index, "{}", spec.name);
            assert_eq!(Api::from_key(spec.key), Some(spec.api));
            assert_eq!(format!("{:?}", spec.api), spec.name);
            assert!(spec.min_advertised <= spec.min && spec.min <= spec.max, "{}", spec.name);
        }
        assert!(APIS.windows(2).all(|pair| pair[0].key < pair[1].key));
    }

    #[test]
    fn the_schemas_cover_each_version_served_and_agree_on_where_varints_begin() {
        fn check<R: Request>(api: Api) {
            let (min, max, flexible_from) = schema_versions::<R>();
            let spec = api.spec();
            assert_eq!(R::API_KEY.value(), spec.key, "{}", spec.name);
            assert!(min <= spec.min && spec.max <= max, "{}: schemas know {min} to {max}", spec.name);
            assert_eq!(flexible_from, Some(spec.flexible_from), "{}", spec.name);
        }
        check::<ProduceRequest>(Api::Produce);
        check::<FetchRequest>(Api::Fetch);
        check::<ListOffsetsRequest>(Api::ListOffsets);
        check::<MetadataRequest>(Api::Metadata);
        check::<OffsetCommitRequest>(Api::OffsetCommit);
        check::<OffsetFetchRequest>(Api::OffsetFetch);
        check::<FindCoordinatorRequest>(Api::FindCoordinator);
        check::<JoinGroupRequest>(Api::JoinGroup);
        check::<HeartbeatRequest>(Api::Heartbeat);
        check::<LeaveGroupRequest>(Api::LeaveGroup);
        check::<SyncGroupRequest>(Api::SyncGroup);
        check::<DescribeGroupsRequest>(Api::DescribeGroups);
        check::<ListGroupsRequest>(Api::ListGroups);
        check::<ApiVersionsRequest>(Api::ApiVersions);
        check::<CreateTopicsRequest>(Api::CreateTopics);
        check::<DeleteTopicsRequest>(Api::DeleteTopics);
        check::<DeleteRecordsRequest>(Api::DeleteRecords);
        check::<InitProducerIdRequest>(Api::InitProducerId);
        check::<DescribeConfigsRequest>(Api::DescribeConfigs);
        check::<DeleteGroupsRequest>(Api::DeleteGroups);
        check::<DescribeProducersRequest>(Api::DescribeProducers);
    }

    #[test]
    fn produce_is_advertised_from_zero_but_served_from_three() {
        assert_eq!(Api::Produce.spec().min_advertised, 0);
        assert!(!Api::Produce.serves(2) && Api::Produce.serves(3));
    }
}

// franz-go: every codec, a group that commits, administration; the newest versions of everything.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	topic = "franz"
	group = "franz"
	count = 1000
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	codecs := []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	}
	for _, codec := range codecs {
		roundTrip(ctx, os.Args[1], codec)
	}
	fmt.Println("OK")
}

func roundTrip(ctx context.Context, address string, codec kgo.CompressionCodec) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(address), kgo.ProducerBatchCompression(codec), kgo.ConsumeTopics(topic),
		kgo.ConsumerGroup(group), kgo.DisableAutoCommit(),
	)
	check(err)
	defer client.Close()
	admin := kadm.NewClient(client)
	_, err = admin.CreateTopic(ctx, 4, 1, nil, topic)
	check(err)
	for n := 0; n < count; n++ {
		record := &kgo.Record{Topic: topic, Key: []byte(fmt.Sprint(n)), Value: []byte(fmt.Sprint("value ", n))}
		client.Produce(ctx, record, func(_ *kgo.Record, err error) { check(err) })
	}
	check(client.Flush(ctx))
	for found := 0; found < count; {
		fetches := client.PollFetches(ctx)
		check(fetches.Err())
		found += fetches.NumRecords()
	}
	check(client.CommitUncommittedOffsets(ctx))
	lags, err := admin.Lag(ctx, group)
	check(err)
	for _, lag := range lags {
		check(lag.Error())
		if lag.State != "Stable" || lag.Lag.Total() != 0 {
			check(fmt.Errorf("state %s, lag %d", lag.State, lag.Lag.Total()))
		}
	}
	greatest, err := admin.ListMaxTimestampOffsets(ctx, topic)
	check(err)
	check(greatest.Error())
	client.LeaveGroup()
	_, err = admin.DeleteGroups(ctx, group)
	check(err)
	_, err = admin.DeleteTopics(ctx, topic)
	check(err)
}

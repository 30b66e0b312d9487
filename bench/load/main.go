// Command load is the load generator of the benchmarks: closed-loop callers of the
// classifier, each with one call, or one message of a bidi stream, under way at a time.
// It prints one JSON object.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	registry "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

var (
	target  = flag.String("target", "127.0.0.1:50052", "address of the classifier")
	model   = flag.String("model", "", "model to call")
	kind    = flag.String("kind", "unary", "unary or bidi")
	callers = flag.Int("callers", 64, "callers at once")
	size    = flag.Int("items", 1, "items in a message")
	ahead   = flag.Int("ahead", 1, "messages of a bidi stream under way at once")
	calls   = flag.Int64("calls", 10000, "messages in all")
	texts   = flag.String("texts", "", "file of texts, one a line, sent in turn; empty: four numbers")
)

// result is what one run prints.
type result struct {
	Messages int64   `json:"messages"`
	Items    int64   `json:"items"`
	Failed   int64   `json:"failed"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
}

// run is one load: what is sent, how much of it is left, and how it went.
type run struct {
	items  []*pb.Item
	next   atomic.Int64
	failed atomic.Int64
	mutex  sync.Mutex
	times  []time.Duration
}

func main() {
	flag.Parse()
	items, err := content(*texts)
	if err != nil {
		log.Fatal(err)
	}
	r := &run{items: items}
	var group sync.WaitGroup
	connections := make([]*grpc.ClientConn, min(8, *callers))
	for i := range connections {
		connections[i], err = grpc.NewClient(*target, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			log.Fatal(err)
		}
		connections[i].Connect()
	}
	started := time.Now()
	for i := range *callers {
		client := pb.NewClassifierServiceClient(connections[i%len(connections)])
		group.Go(func() {
			if *kind == "bidi" {
				r.converse(client)
			} else {
				r.call(client)
			}
		})
	}
	group.Wait()
	seconds := time.Since(started).Seconds()
	slices.Sort(r.times)
	count := int64(len(r.times))
	report := result{count, count * int64(*size), r.failed.Load(), seconds, r.quantile(0.5), r.quantile(0.99)}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		log.Fatal(err)
	}
}

// content is what the items are made of.
func content(path string) ([]*pb.Item, error) {
	if path == "" {
		numbers := &pb.FloatFeatures{Values: []float32{5.1, 3.5, 1.4, 0.2}}
		return []*pb.Item{{Content: &pb.Item_FloatFeatures{FloatFeatures: numbers}}}, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var items []*pb.Item
	for lines := bufio.NewScanner(file); lines.Scan(); {
		items = append(items, &pb.Item{Content: &pb.Item_Text{Text: &pb.Text{Text: lines.Text()}}})
	}
	if len(items) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return items, nil
}

// take gives the number of the next message, or false when all have been sent.
func (r *run) take() (int64, bool) {
	number := r.next.Add(1) - 1
	return number, number < *calls
}

func (r *run) item(number int64) *pb.Item { return r.items[number%int64(len(r.items))] }

func (r *run) call(client pb.ClassifierServiceClient) {
	var times []time.Duration
	for number, more := r.take(); more; number, more = r.take() {
		request := &pb.ClassifyRequest{Model: &registry.ModelRef{Model: *model}, Options: &pb.ClassifyOptions{NoCache: true}}
		for i := range *size {
			request.Items = append(request.Items, r.item(number*int64(*size)+int64(i)))
		}
		sent := time.Now()
		response, err := client.Classify(context.Background(), request)
		if err != nil || !answered(response.GetResults()) {
			r.failed.Add(1)
		}
		times = append(times, time.Since(sent))
	}
	r.keep(times)
}

func (r *run) converse(client pb.ClassifierServiceClient) {
	stream, err := client.ClassifyBidi(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	var times []time.Duration
	sent := map[int64]time.Time{}
	left := map[int64]int{}
	send := func() bool {
		number, more := r.take()
		if !more {
			return false
		}
		request := &pb.ClassifyBidiRequest{}
		if len(sent) == 0 && len(times) == 0 {
			request.Model = &registry.ModelRef{Model: *model}
			request.Options = &pb.ClassifyOptions{NoCache: true}
		}
		for i := range *size {
			id := strconv.FormatInt(number, 10) + "/" + strconv.Itoa(i)
			request.Items = append(request.Items, &pb.BidiItem{Id: id, Item: r.item(number*int64(*size) + int64(i))})
		}
		sent[number], left[number] = time.Now(), *size
		if err := stream.Send(request); err != nil {
			log.Fatal(err)
		}
		return true
	}
	for range *ahead {
		send()
	}
	for len(left) > 0 {
		response, err := stream.Recv()
		if err != nil {
			log.Fatal(err)
		}
		for _, one := range response.GetResults() {
			name, _, _ := strings.Cut(one.GetId(), "/")
			number, err := strconv.ParseInt(name, 10, 64)
			if err != nil {
				log.Fatal(err)
			}
			if one.GetResult().GetClassification() == nil {
				r.failed.Add(1)
			}
			if left[number]--; left[number] == 0 {
				times = append(times, time.Since(sent[number]))
				delete(left, number)
				delete(sent, number)
				send()
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		log.Fatal(err)
	}
	r.keep(times)
}

func answered(results []*pb.ItemResult) bool {
	return len(results) == *size && !slices.ContainsFunc(results, func(one *pb.ItemResult) bool {
		return one.GetClassification() == nil
	})
}

func (r *run) keep(times []time.Duration) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.times = append(r.times, times...)
}

func (r *run) quantile(share float64) float64 {
	if len(r.times) == 0 {
		return 0
	}
	at := min(len(r.times)-1, int(float64(len(r.times))*share))
	return float64(r.times[at].Microseconds()) / 1000
}

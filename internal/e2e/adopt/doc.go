// Package adopt tests the way into a mesh and out of the CronJob: the migration
// command, the example, and the commands of the documents, on a real control
// plane with istiod's webhook. It holds tests only.
//
// There is no kubelet: the pods are real objects that the real controllers make
// and the real webhook injects, but nothing runs in them. What a kubelet would
// say of them, that they are ready, the tests say.
package adopt
